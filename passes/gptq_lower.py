"""Round column by column on uniform grids; the columns still to come take over each error.

Source: GPTQ (arXiv 2210.17323). The grid of a group is fitted as its first column's turn comes, on
weights that have taken over the errors so far; ``search=clip`` is the grid search of its code.
``asymmetry`` adds the term of GPTAQ (arXiv 2504.02692), which reads ``calibrate-cross`` and takes
back part of the error of the layers before. Ours: ``target=whole``, the minimiser itself, which
that term follows column by column; ``sweeps`` and ``rounds``, which choose codes and refit grids in
the metric of what later columns cannot compensate (Schur complement), in the same stored form.
``order=activation`` reorders inside a group only, so it stores nothing.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @gptq  8 groups of 64   2 bits   output error 6.1e-02
"""

from typing import ClassVar, Literal

from torch import Tensor

from qdc.numerics.asymmetry import asymmetry_term
from qdc.passkit import (
    AffineGrid,
    CrossMoment,
    Factor,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Tensors,
    UniformGrid,
    UniformLowering,
    Unit,
    Work,
    block_slices,
    model_validator,
    quantize_on_grids,
    target,
)
from qdc.passkit.block_lowering import drift_effort


class Gptq(Lowered):
    """A layer as codes on uniform grids, each chosen with the errors of those before at hand."""

    tag: ClassVar[str] = "gptq"
    codec: UniformGrid


class GptqLower(UniformLowering):
    """Round column by column on uniform grids; the columns still to come take over each error."""

    name: ClassVar[str] = "gptq-lower"
    requires: ClassVar[Kinds] = (Factor,)
    provides: ClassVar[Kinds] = (Gptq,)

    order: Literal["natural", "activation"] = Field(
        default="natural", description="columns of a group from left, or costliest first"
    )
    sweeps: int = Field(
        default=0, ge=0, le=100, description="sweeps over the columns after each feedback"
    )
    rounds: int = Field(
        default=0, ge=0, le=100, description="refits of the grids, each with feedback anew"
    )
    asymmetry: float = Field(
        default=0, ge=0, le=2, description="share of GPTAQ's term: 0, 0.25 (its scripts), 1"
    )
    target: Literal["sequential", "whole"] = Field(
        default="sequential", description="the term as published, or the whole minimiser (ours)"
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "GptqLower":
        if self.target == "whole" and not self.asymmetry:
            raise ValueError("target=whole says how asymmetry acts, and asymmetry is 0")
        return self

    def needs(self) -> Kinds:
        """GPTAQ's term reads the cross moment."""
        return (*self.requires, CrossMoment) if self.asymmetry else self.requires

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Four copies of the weight, errors moved along; with asymmetry its term or target."""
        weights = node.rows * node.columns
        columns = (1 + self.rounds) * (1 + 2 * self.sweeps) * self.group
        work = Work(products=weights * node.columns, elements=weights * (self.reads + columns))
        nbytes = 5 * unit.weight(node) + 2 * self.codec(node).working_bytes
        drift_bytes, drift = drift_effort(node, self.asymmetry, self.target)
        return nbytes + drift_bytes, work + drift

    def lower(self, unit: Unit, node: Node) -> tuple[Gptq, Tensors]:
        """Quantize the groups of a layer left to right."""
        factor = unit.graph.require(node.name, Factor)
        upper = unit.get(factor.tensor)
        whole = self.target == "whole"
        weight = target(unit, node, upper, self.asymmetry if whole else 0)
        term: Tensor | None = None
        if self.asymmetry and not whole:
            cross = unit.get(unit.graph.require(node.name, CrossMoment).tensor)
            term = asymmetry_term(cross, upper, self.asymmetry)
        slices = block_slices(node.columns, self.group)
        grids, dense = quantize_on_grids(
            weight,
            upper,
            slices,
            lambda block: AffineGrid.fit(block, self.bits, self.search, self.zero, self.norm),
            rounds=self.rounds,
            sweeps=self.sweeps,
            by_activation=self.order == "activation",
            asymmetry=term,
        )
        groups = [grid.encode(dense[:, part]) for grid, part in zip(grids, slices, strict=True)]
        return Gptq(codec=self.codec(node)), UniformGrid.working(groups, self.group, self.zero)
