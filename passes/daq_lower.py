"""Fit each block by binary components and carry its error over to the blocks that follow.

Source: Quant-dLLM, arXiv 2510.03274, Data-aware Any-order Quantizer (DAQ), in the released code's
form (github.com/ZTA2785/Quant-dLLM): greedy start, joint cyclic refits of all scales with outliers
weighted, joint search over the signs. Ours after that (``feedback``): the signs are chosen anew
column by column, each seeing the errors of the others, and the scales are refitted in the metric
of what later columns cannot compensate (Schur complement); a few rounds, the best is kept. With
``asymmetry`` (after ``calibrate-cross``) a layer is first moved to what would undo the drift of its
inputs, and of the residual stream that it adds to, since the layers before it were quantized
(GPTAQ's objective, arXiv 2504.02692, its whole minimiser). Scales are rounded to what is stored
before any error is taken. Compensation between blocks is the exact triangular one; ``diag`` is the
released code's approximation.

With ``outputs=guided`` errors of a block also see each other from row to row, by the curvature of
the loss that ``guide{outputs=true}`` notes (YAQA, arXiv 2505.22988): signs are chosen weight by
weight, and the scales of all rows are refitted together. What is stored stays as it is.

    before   %h0.q = linear %x   w f16[64,512]
                 @orders  2 1 3 2   mean 2
    after        @daq     4 blocks   output error 1.3e-02   outliers 2.2%   15 sweeps
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.format.multibinary import MultiBinary
from qdc.numerics.importance import ImportanceKind, importance, outlier_weight
from qdc.numerics.multibinary import Components, dense, fit
from qdc.numerics.two_sided_block import RowMetric, quantize_two_sided, row_metric
from qdc.passkit import (
    BLOCK,
    BinaryGrid,
    Compensation,
    CrossMoment,
    Factor,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Lowering,
    Node,
    Orders,
    Tensors,
    Unit,
    Work,
    block_metric,
    block_slices,
    model_validator,
    quantize_block,
    quantize_blocks,
    target,
)
from qdc.passkit.outputs import (
    DAMP,
    OutputDamp,
    Outputs,
    curvature_needs,
    output_factor_effort,
    own_output_factor,
)
from qdc.streaming.work import FP32

SQUARES_HELD = 12
"""Squares of rows beside the curvature, in fp32: the factor, its metric, and these made in fp64."""


class Daq(Lowered):
    """A layer as planes of signs with row and column scales."""

    tag: ClassVar[str] = "daq"
    codec: MultiBinary
    outliers: float = Field(ge=0, le=1)
    """Share of the weights that were flagged as outliers."""
    sweeps: int = Field(ge=0)
    """Most sweeps that a block took."""

    def text(self) -> str:
        """``4 blocks   output error 1.3e-02   outliers 2.2%   15 sweeps``."""
        return (
            f"{len(self.codec.orders)} blocks{self.error_text()}   "
            f"outliers {self.outliers:.1%}   {self.sweeps} sweeps"
        )


class DaqLower(Lowering):
    """Fit each block by binary components and carry its error over to the blocks that follow."""

    name: ClassVar[str] = "daq-lower"
    requires: ClassVar[Kinds] = (Factor, Orders)
    provides: ClassVar[Kinds] = (Daq,)

    sweeps: int = Field(default=15, ge=0, le=1000, description="rounds of refit and sign search")
    tolerance: float = Field(
        default=1e-6, ge=0, description="stop when a sweep gains less than this share; 0 never"
    )
    fit: Literal["joint", "greedy"] = Field(
        default="joint", description="all components together (release), or one by one (paper)"
    )
    sigma: float = Field(default=2.0, gt=0, description="deviations of importance of an outlier")
    two_sided: bool = Field(
        default=False, description="count unimportant weights as outliers too (paper)"
    )
    outlier_weight: float = Field(
        default=3.0, gt=0, description="least-squares weight of an outlier; 1 turns it off"
    )
    importance: ImportanceKind = Field(
        default="conditional", description="diagonal in the importance: release, or paper"
    )
    outliers_of: Literal["current", "original"] = Field(
        default="current", description="weights whose importance counts: compensated, or original"
    )
    compensation: Compensation = Field(
        default="exact", description="how a block's error moves to later blocks"
    )
    feedback: bool = Field(
        default=True, description="choose the signs column by column, seeing each other's errors"
    )
    rounds: int = Field(
        default=2, ge=0, le=100, description="refits of the scales, each with feedback anew"
    )
    code_sweeps: int = Field(
        default=1, ge=0, le=100, description="sweeps over the columns after each feedback"
    )
    order: Literal["natural", "activation"] = Field(
        default="natural", description="columns of a block from left, or costliest first"
    )
    scale_bits: Literal[8, 16] = Field(default=16, description="bits of a stored scale")
    asymmetry: float = Field(
        default=0,
        ge=0,
        le=2,
        description="share of the drift of its inputs that a layer takes back",
    )
    outputs: Outputs = "alike"
    output_damp: OutputDamp = DAMP

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "DaqLower":
        unread = {
            "feedback=false": () if self.feedback else ("rounds", "code_sweeps", "order"),
            "outlier-weight=1": ("sigma", "two_sided", "importance", "outliers_of")
            if self.outlier_weight == 1
            else (),
            f"outputs={self.outputs}": ("feedback",)
            if self.outputs == "guided"
            else ("output_damp",),
        }
        for why, options in unread.items():
            for option in options:
                if getattr(self, option) != type(self).model_fields[option].default:
                    raise ValueError(f"{why} does not read {option.replace('_', '-')}")
        return self

    def needs(self) -> Kinds:
        """What a layer is to take back is in the cross moment."""
        crossed = (CrossMoment,) if self.asymmetry else ()
        return (*self.requires, *crossed, *curvature_needs(self.outputs))

    def forecast_codec(self, unit: Forecast, node: Node) -> MultiBinary | None:
        """Planes as the allocation gives them: none where that is not known."""
        orders = unit.graph.get(node.name, Orders)
        return None if orders is None else self.codec(node, orders)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Copies of the weight: as it is, as errors change it, written out, and one that moves."""
        weights, orders = node.rows * node.columns, unit.graph.get(node.name, Orders)
        mean = 2 if orders is None else orders.mean
        width = BLOCK if orders is None else orders.widths[0]
        sweeps = self.sweeps * (12 * mean + 4 * 2**mean)
        columns = self.feedback * (1 + self.rounds) * (1 + 2 * self.code_sweeps) * width
        work = Work(
            products=(1 + 6 * bool(self.asymmetry)) * weights * node.columns,
            elements=weights * (sweeps + columns),
        )
        signs = 0 if orders is None else 2 * self.codec(node, orders).working_bytes
        if self.outputs == "guided":
            more, factored = output_factor_effort(node)
            reach, turns = node.rows + width, 1 + self.rounds + self.code_sweeps
            work += factored + Work(
                # Each turn hands errors down, is costed, and its scales are refitted.
                products=turns * (2 + mean) * weights * node.rows,
                exact=2 * node.rows**3,
                elements=2 * turns * weights * reach,
            )
            more += SQUARES_HELD * FP32 * node.rows**2
            return max(5 * unit.weight(node), 3 * unit.weight(node) + signs) + more, work
        return max(5 * unit.weight(node), 3 * unit.weight(node) + signs), work

    def codec(self, node: Node, orders: Orders) -> MultiBinary:
        """The planes of one layer."""
        return MultiBinary(
            rows=node.rows,
            columns=node.columns,
            block=-(-orders.widths[0] // 8) * 8,
            orders=orders.blocks,
            scale_bits=self.scale_bits,
            scale_code="linear" if self.scale_bits == 16 else "logarithmic",
        )

    def lower(self, unit: Unit, node: Node) -> tuple[Daq, Tensors]:
        """Quantize the blocks of a layer left to right."""
        factor = unit.graph.require(node.name, Factor)
        orders = unit.graph.require(node.name, Orders)
        upper = unit.get(factor.tensor)
        weight = target(unit, node, upper, self.asymmetry)
        rows = None
        if self.outputs == "guided":
            rows = row_metric(own_output_factor(unit, node, self.output_damp))
        codec = self.codec(node, orders)
        slices = block_slices(node.columns, codec.block)
        blocks: list[Components] = []
        flagged: list[Tensor] = []
        swept: list[int] = []

        def quantize(index: int, block: Tensor) -> Tensor:
            part = slices[index]
            emphasis = self.emphasis(
                block if self.outliers_of == "current" else weight[:, part], upper, part
            )
            fitted, losses = fit(
                block,
                orders.blocks[index],
                emphasis,
                self.sweeps,
                self.tolerance,
                greedy=self.fit == "greedy",
                scale_bits=self.scale_bits,
            )
            flagged.append((emphasis != 1).sum())
            swept.append(len(losses) - 1)
            if self.feedback:
                fitted = self.refine(block, fitted, upper[part, part], rows)
            blocks.append(fitted)
            return dense(fitted)

        quantize_blocks(weight, upper, slices, self.compensation, quantize)
        share = int(torch.stack(flagged).sum()) / weight.numel()
        note = Daq(codec=codec, outliers=share, sweeps=max(swept))
        return note, MultiBinary.working(blocks, codec.block)

    def emphasis(self, block: Tensor, upper: Tensor, part: slice) -> Tensor:
        """Least-squares weights of a block, f32[n, g]: outliers of importance count more."""
        scores = importance(block, upper[: part.stop, part], self.importance)
        return outlier_weight(scores, self.sigma, self.outlier_weight, two_sided=self.two_sided)

    def refine(
        self, block: Tensor, fitted: Components, triangle: Tensor, rows: RowMetric | None
    ) -> Components:
        """Alternate feedback and refits of the scales, from the fitted levels on."""
        metric = block_metric(triangle, by_activation=self.order == "activation")
        grid, start = BinaryGrid(fitted, self.scale_bits), dense(fitted)
        if rows is None:
            grid, best = quantize_block(
                block, start, grid, metric, rounds=self.rounds, sweeps=self.code_sweeps
            )
        else:
            grid, best = quantize_two_sided(
                block, start, grid, metric, rows, rounds=self.rounds, sweeps=self.code_sweeps
            )
        return grid.encode(best)
