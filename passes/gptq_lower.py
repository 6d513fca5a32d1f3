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

from pydantic import Field, model_validator
from torch import Tensor

from qdc.format.codec import Lowered, Tensors
from qdc.format.uniformgrid import READS, UniformGrid, require_clip
from qdc.ir.annotations import Factor
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import Node
from qdc.numerics.affinegrid import AffineGrid
from qdc.numerics.asymmetry import asymmetry_term
from qdc.numerics.blocks import block_slices
from qdc.numerics.columns import block_metric, quantize_block
from qdc.numerics.feedback import quantize_blocks
from qdc.numerics.uniform import NORM, Search, Uniform, Zero, dense_uniform
from qdc.passkit.lowering import Lowering, target
from qdc.pipeline.passbase import Kinds
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work


class Gptq(Lowered):
    """A layer as codes on uniform grids, each chosen with the errors of those before at hand."""

    tag: ClassVar[str] = "gptq"
    codec: UniformGrid

    def text(self) -> str:
        """``8 groups of 64   2 bits   output error 6.1e-02``."""
        return f"{self.codec.text()}{self.error_text()}"


class GptqLower(Lowering):
    """Round column by column on uniform grids; the columns still to come take over each error."""

    name: ClassVar[str] = "gptq-lower"
    requires: ClassVar[Kinds] = (Factor,)
    provides: ClassVar[Kinds] = (Gptq,)

    bits: Literal[1, 2, 4, 8] = Field(default=2, description="bits of a code")
    group: int = Field(
        default=128, ge=8, le=1 << 16, multiple_of=8, description="columns of a grid"
    )
    search: Search = Field(
        default="minmax", description="grid from minimum to maximum, or the best narrower one"
    )
    norm: float = Field(
        default=NORM, gt=0, le=8, description="exponent of the error that clip minimises"
    )
    zero: Zero = Field(
        default="float", description="store a group's minimum in fp16, or the code of 0"
    )
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
        require_clip(self.search, self.norm)
        if self.target == "whole" and not self.asymmetry:
            raise ValueError("target=whole says how asymmetry acts, and asymmetry is 0")
        return self

    def needs(self) -> Kinds:
        """GPTAQ's term reads the cross moment."""
        return (*self.requires, CrossMoment) if self.asymmetry else self.requires

    def foresee(self, unit: Forecast, node: Node) -> UniformGrid:
        """The grid that the options give."""
        return self.codec(node)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Four copies of the weight, errors moved along; with asymmetry its term or target."""
        weights, squares = node.rows * node.columns, node.columns**2
        columns = (1 + self.rounds) * (1 + 2 * self.sweeps) * self.group
        work = Work(
            products=weights * node.columns, elements=weights * (READS[self.search] + columns)
        )
        nbytes = 5 * unit.weight(node) + 2 * self.codec(node).working_bytes
        if self.asymmetry and self.target == "whole":
            work += Work(products=6 * weights * node.columns)
        elif self.asymmetry:
            nbytes += 3 * 4 * squares
            work += Work(products=2 * weights * node.columns + 4 * squares * node.columns)
        return nbytes, work

    def codec(self, node: Node) -> UniformGrid:
        """The grid of one layer."""
        return UniformGrid(
            rows=node.rows, columns=node.columns, group=self.group, bits=self.bits, zero=self.zero
        )

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
        groups: list[Uniform] = []

        def quantize(index: int, block: Tensor) -> Tensor:
            part = slices[index]
            groups.append(self.quantize(block, upper[part, part]))
            return dense_uniform(groups[-1])

        quantize_blocks(weight, upper, slices, "exact", quantize, term)
        return Gptq(codec=self.codec(node)), UniformGrid.working(groups, self.group, self.zero)

    def quantize(self, block: Tensor, triangle: Tensor) -> Uniform:
        """Quantize one group, ``f32[n, g]``, with its part of the factor, ``f32[g, g]``."""
        grid, best = quantize_block(
            block,
            None,
            AffineGrid.fit(block, self.bits, self.search, self.zero, self.norm),
            block_metric(triangle, by_activation=self.order == "activation"),
            rounds=self.rounds,
            sweeps=self.sweeps,
        )
        return grid.encode(best)
