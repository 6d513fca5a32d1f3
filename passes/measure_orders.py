"""Fit every block at orders 1 to 4 and note what each leaves of the layer's output error.

Source: the exact residual cost of a block, ||(W_b - Q_b) U_bb^-1||_F^2: what later blocks cannot
compensate (github.com/ZTA2785/Quant-dLLM compensates so, up to the diagonal). One walk through each
layer compensates at the base order; on the way every block is fitted at every order.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
                 @salience  4 blocks of 128   1.1e+03 .. 9.4e+03
    after        @costs     4 blocks   share of the output at orders 1..: 0.21 0.05 0.013 0.0041

``feedback`` lets the signs of a block see each other's errors, as daq-lower does by default. The
plain ``fit`` is several times faster and ranks blocks otherwise: measure with it only for
daq-lower{feedback=false}.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch

from qdc.numerics.order_costs import fitter, order_costs
from qdc.passkit import (
    HIGHEST_ORDER,
    Costs,
    Factor,
    Field,
    Forecast,
    InvalidPipeline,
    Kinds,
    Node,
    Orders,
    Pass,
    Salience,
    Unit,
    Work,
    block_slices,
    model_validator,
    residual_cost,
)


class MeasureOrders(Pass):
    """Fit every block at orders 1 to 4 and note what each leaves of the layer's output error."""

    name: ClassVar[str] = "measure-orders"
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False
    requires: ClassVar[Kinds] = (Factor, Salience)
    provides: ClassVar[Kinds] = (Costs,)

    base: int = Field(
        default=2, ge=1, le=HIGHEST_ORDER, description="order at which earlier blocks are taken"
    )
    highest: int = Field(
        default=HIGHEST_ORDER, ge=1, le=HIGHEST_ORDER, description="highest order to fit"
    )
    how: Literal["fit", "feedback"] = Field(
        default="feedback", description="plain fit, or with the signs seeing each other's errors"
    )
    sweeps: int = Field(default=15, ge=0, le=1000, description="rounds of refit and sign search")
    tolerance: float = Field(
        default=1e-4, ge=0, description="stop when a sweep gains less than this share; 0 never"
    )
    rounds: int = Field(default=0, ge=0, le=100, description="of feedback: refits of the scales")
    code_sweeps: int = Field(
        default=0, ge=0, le=100, description="of feedback: sweeps over the columns after each"
    )
    scale_bits: Literal[8, 16] = Field(default=16, description="bits of a stored scale")

    @model_validator(mode="after")
    def _base_is_fitted(self) -> "MeasureOrders":
        if self.base > self.highest:
            raise ValueError(f"base {self.base} is above the highest order {self.highest}")
        if self.how == "fit" and (self.rounds or self.code_sweeps):
            raise ValueError("how=fit does not read rounds and code-sweeps, which are of feedback")
        return self

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse a lowering that stores its scales otherwise: costs and bytes would not be its."""
        for step in later:
            bits = getattr(step, "scale_bits", self.scale_bits)
            if Orders in step.requires and bits != self.scale_bits:
                raise InvalidPipeline(
                    f"{self.name} measures with scales of {self.scale_bits} bits, "
                    f"and {step.name} stores them with {bits}",
                    help=f"write {self.name}{{scale-bits={bits}}}",
                )

    def run(self, unit: Unit) -> None:
        """Measure one layer after the other."""

        def measure(nodes: tuple[Node, ...]) -> None:
            for node in nodes:
                unit.annotate(node, self.measure(unit, node))

        unit.share(unit.layers(), measure)

    def forecast(self, unit: Forecast) -> None:
        """A walk through each layer with a fit of every block at every order."""
        for node in unit.layers():
            salience = unit.graph.get(node.name, Salience)
            if salience is None:
                unit.unknown()
                continue
            weights, widths = node.rows * node.columns, salience.widths
            sweeps = sum(self.sweeps * (12 * k + 4 * 2**k) for k in range(1, self.highest + 1))
            passes = (1 + self.rounds) * (1 + 2 * self.code_sweeps) * widths[0]
            columns = (self.how == "feedback") * self.highest * passes
            work = Work(
                products=weights * node.columns,
                exact=weights * node.columns,
                elements=weights * (sweeps + columns),
            )
            exact = 8 * (node.columns**2 + 4 * weights)
            unit.work(max(5 * unit.weight(node), exact + 2 * unit.weight(node)), work)
            costs = ((0.0,) * self.highest,) * len(widths)
            note = Costs(blocks=costs, widths=widths, energy=0, scale_bits=self.scale_bits)
            unit.annotate(node, note)

    def measure(self, unit: Unit, node: Node) -> Costs:
        """Walk through one layer."""
        factor = unit.graph.require(node.name, Factor)
        widths = unit.graph.require(node.name, Salience).widths
        upper = unit.get(factor.tensor)
        dead = torch.tensor(factor.dead, dtype=torch.int64, device=upper.device)
        weight = unit.weight(node).index_fill(1, dead, 0)
        quantize = fitter(
            self.sweeps,
            self.tolerance,
            self.scale_bits,
            feedback=self.how == "feedback",
            rounds=self.rounds,
            code_sweeps=self.code_sweeps,
        )
        orders = range(1, self.highest + 1)
        slices = block_slices(node.columns, widths[0])
        found = order_costs(weight, upper, slices, orders, self.base, quantize)
        return Costs(
            blocks=found.blocks,
            widths=widths,
            energy=residual_cost(weight, torch.zeros_like(weight), upper),
            scale_bits=self.scale_bits,
        )
