"""What quantizers that fit one block of columns after the other share: the loop, and its options.

A published method brings the fit of one block and its levels (``Grid``). With ``feedback=false
compensation=diag`` the fit is all there is, as most releases have it; with feedback the codes of a
block are chosen anew, column by column, on the levels that the fit found, and ``rounds``,
``sweeps`` and ``asymmetry`` are those of the project's own quantizer. Source: related-systems.md A2
to A5, B4, B5.
"""

from abc import ABC
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, NamedTuple, TypeVar

from pydantic import Field, model_validator
from torch import Tensor

from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import Node
from qdc.numerics.asymmetry import asymmetry_term
from qdc.numerics.columns import block_metric, quantize_block
from qdc.numerics.feedback import Compensation, quantize_blocks
from qdc.numerics.grids import Grid
from qdc.passkit.lowering import Lowering, target
from qdc.pipeline.passbase import Kinds
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work

G = TypeVar("G", bound=Grid)
COPIES = 5
"""Copies of a weight that the loop holds: as it is, with errors, written out, and two moving."""


class Problem(NamedTuple):
    """What the loop is to solve for one layer.

    Attributes:
        weight: f32[rows, columns], what is to be met; dead inputs are 0.
        upper: f32[columns, columns], the factor of the damped inverse moment.
    """

    weight: Tensor
    upper: Tensor


class CompensationOptions(Lowering, ABC):
    """How blocks hand their errors on.

    The options of the loop are in classes of their own because their order is that of a pipeline's
    text: a class that mixes them has those of its last base first.
    """

    compensation: Compensation = Field(
        default="exact", description="how a block's error moves to later blocks"
    )


class FeedbackOptions(CompensationOptions, ABC):
    """How the codes of a block are chosen."""

    feedback: bool = Field(
        default=True, description="choose codes column by column, seeing each other's errors"
    )
    rounds: int = Field(
        default=2, ge=0, le=100, description="refits of the levels, each with feedback anew"
    )
    sweeps: int = Field(
        default=1, ge=0, le=100, description="sweeps over the columns after each feedback"
    )

    @model_validator(mode="after")
    def _loop_ignores_nothing(self) -> "FeedbackOptions":
        fields = type(self).model_fields
        if not self.feedback:
            for option in ("rounds", "sweeps"):
                if getattr(self, option) != fields[option].default:
                    raise ValueError(f"feedback=false does not read {option}")
        return self


class DriftOptions(Lowering, ABC):
    """How a layer takes the drift of its inputs back."""

    requires: ClassVar[Kinds] = (Factor,)

    asymmetry: float = Field(
        default=0,
        ge=0,
        le=2,
        description="share of its inputs' drift that a layer takes back",
    )
    target: Literal["whole", "sequential"] = Field(
        default="whole", description="take it back at once, or block by block (GPTAQ's term)"
    )

    @model_validator(mode="after")
    def _target_is_read(self) -> "DriftOptions":
        if self.target != type(self).model_fields["target"].default and not self.asymmetry:
            raise ValueError(f"target={self.target} says how asymmetry acts, and asymmetry is 0")
        return self

    def needs(self) -> Kinds:
        """What a layer is to take back is in the cross moment."""
        return (*self.requires, CrossMoment) if self.asymmetry else self.requires

    def problem(self, unit: Unit, node: Node) -> Problem:
        """Read what the loop is to solve for a layer, which carries a factor."""
        upper = unit.get(unit.graph.require(node.name, Factor).tensor)
        share = self.asymmetry if self.target == "whole" else 0
        return Problem(target(unit, node, upper, share), upper)

    def cross(self, unit: Unit, node: Node) -> Tensor | None:
        """The cross moment that ``drift_term`` reads; None where no such term is asked for."""
        if not self.asymmetry or self.target == "whole":
            return None
        return unit.get(unit.graph.require(node.name, CrossMoment).tensor)

    def drift_term(
        self, unit: Unit, node: Node, upper: Tensor, slices: Sequence[slice]
    ) -> Tensor | None:
        """What columns hand on of the drift of their inputs; None unless that is asked for.

        Args:
            unit: of the layer.
            node: the layer.
            upper: its factor, ``f32[columns, columns]``.
            slices: columns of the blocks.
        """
        cross = self.cross(unit, node)
        return None if cross is None else asymmetry_term(cross, upper, self.asymmetry)


def drift_effort(node: Node, asymmetry: float, target: str) -> tuple[int, Work]:
    """Bytes and arithmetic of what a layer takes back of its drift: its target, or its term."""
    products, squares = node.rows * node.columns**2, node.columns**2
    if not asymmetry:
        return 0, Work()
    if target == "whole":
        return 0, Work(products=6 * products)
    return 3 * 4 * squares, Work(products=2 * products + 4 * squares * node.columns)


class CompensatedLowering(DriftOptions, CompensationOptions, ABC):
    """A pass whose blocks hand their errors on, and that may take its inputs' drift back."""

    def compensation_effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Bytes and arithmetic of moving errors along, and of the drift's target or term."""
        drift_bytes, drift = drift_effort(node, self.asymmetry, self.target)
        moved = Work(products=node.rows * node.columns**2)
        return COPIES * unit.weight(node) + drift_bytes, moved + drift


class BlockLowering(CompensatedLowering, FeedbackOptions, ABC):
    """A pass that quantizes the blocks of a layer left to right, by a fit of its own."""

    def loop_effort(self, unit: Forecast, node: Node, width: int) -> tuple[int, Work]:
        """Bytes and arithmetic of the loop alone, over blocks of ``width`` columns."""
        columns = self.feedback * (1 + self.rounds) * (1 + 2 * self.sweeps) * width
        nbytes, work = self.compensation_effort(unit, node)
        return nbytes, work + Work(elements=node.rows * node.columns * columns)

    def quantize(
        self,
        unit: Unit,
        node: Node,
        slices: Sequence[slice],
        fit: Callable[[int, Tensor, Tensor], tuple[G, Tensor]],
    ) -> tuple[list[G], Tensor]:
        """Quantize a layer, block after block.

        Args:
            unit: of the layer, which carries a factor.
            node: the layer.
            slices: columns of the blocks: adjoining, in order, all of them.
            fit: called as ``fit(index, block, triangle)``: the block as changed by those before it,
                ``f32[rows, width]``, and its part of the factor, ``f32[width, width]``. Returns its
                levels, and the block written out on them, which is what the method publishes.

        Returns:
            The levels of each block, and ``f32[rows, columns]`` on them.

        Raises:
            OverflowError: a scale does not fit its stored dtype.
            NotImplementedError: ``rounds`` with levels that cannot be refitted.
        """
        weight, upper = self.problem(unit, node)
        term = self.drift_term(unit, node, upper, slices)
        levels: list[G] = []

        def quantize(index: int, block: Tensor) -> Tensor:
            triangle = upper[slices[index], slices[index]]
            grid, best = fit(index, block, triangle)
            if self.feedback:
                grid, best = quantize_block(
                    block,
                    best,
                    grid,
                    block_metric(triangle),
                    rounds=self.rounds,
                    sweeps=self.sweeps,
                )
            levels.append(grid)
            return best

        return levels, quantize_blocks(weight, upper, slices, self.compensation, quantize, term)
