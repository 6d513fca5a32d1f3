"""Fit three levels to each row and block of columns: a scale and a shift, codes -1, 0 and +1.

Source: PT2-LLM, arXiv 2510.03267, and its release (github.com/XIANGLONGYAN/PT2-LLM): iterative
ternary fitting on the weights, then grid alignment, which refits the levels to the inputs, codes
fixed; with ``reorder=similarity`` each block takes the columns that are most alike, and their
order is stored. Ours: the codes are chosen anew column by column (``feedback``), and the levels
refitted in the metric of what later columns cannot compensate (Schur complement), in the same
stored form.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @pt2    4 groups of 128   1.6 bits   output error 8.1e-02   12 iterations
"""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.format.shiftedternary import ShiftedTernary
from qdc.numerics.reordering import Drift, quantize_reordered
from qdc.numerics.ternary import Keep, Start, Update, best_levels, fit_ternary
from qdc.numerics.ternarygrid import TernaryGrid
from qdc.passkit import (
    BlockLowering,
    CrossMoment,
    Factor,
    Field,
    Forecast,
    Kinds,
    LayerGraph,
    Lowered,
    Moment,
    Node,
    Preset,
    Tensors,
    Unit,
    Work,
    block_metric,
    block_slices,
    model_validator,
    quantize_block,
    target,
)

Fitted = tuple[TernaryGrid, Tensor]
"""The levels of a block, and the block written out on them."""
READS = 8
"""How often an iteration of the fit reads or writes each weight, for ``qdc plan``."""
USUAL_ITERATIONS = 30
"""How many iterations a fit usually takes at most, for ``qdc plan``."""


class Pt2(Lowered):
    """A layer as ternary codes, with a scale and a shift for each row and group of columns."""

    tag: ClassVar[str] = "pt2"
    codec: ShiftedTernary
    iterations: int = Field(ge=0)
    """Most iterations that a block took."""
    unaligned: int | None = Field(default=None, ge=0)
    """Rows of blocks that grid alignment left as they were fitted; None if it was not asked for."""

    def text(self) -> str:
        """``4 groups of 128   1.6 bits   output error 1.3e-02   12 iterations   aligned``."""
        aligned = "" if self.unaligned is None else "   aligned"
        if self.unaligned:
            aligned += f" but for {self.unaligned:,} rows of blocks"
        return f"{super().text()}   {self.iterations} iterations{aligned}"


class Pt2Lower(BlockLowering):
    """Fit three levels to each row and block of columns: a scale, a shift, and codes of base 3."""

    name: ClassVar[str] = "pt2-lower"
    provides: ClassVar[Kinds] = (Pt2,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "pt2": Preset(
            "stages(calibrate-cross{residual=false},sensitivity,"
            "pt2-lower{compensation=diag feedback=false asymmetry=0.25 target=sequential "
            "update=alternating keep=previous aga=moment fallback=block carry=blocks "
            "spare=products}),pack",
            1.58,
            "arXiv 2510.03267",
        ),
        "pt2-ssr": Preset(
            "stages(calibrate-cross{residual=false},sensitivity,"
            "pt2-lower{compensation=diag feedback=false asymmetry=0.25 target=sequential "
            "update=alternating keep=previous aga=moment fallback=block reorder=similarity "
            "carry=blocks spare=products}),pack",
            1.58,
            "arXiv 2510.03267",
        ),
        "pt2-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},pt2-lower{asymmetry=1}),pack",
            1.58,
            "arXiv 2510.03267",
        ),
    }

    group: int = Field(default=128, ge=8, le=1 << 16, description="columns of a block")
    iterations: int = Field(default=100, ge=0, le=1000, description="most iterations of the fit")
    start: Start = Field(
        default="scale", description="0.75 of the mean deviation is the first scale, or threshold"
    )
    update: Update = Field(
        default="joint", description="scale and shift together, or shift first (release)"
    )
    keep: Keep = Field(
        default="last", description="iterate that is kept: last, or the one before (release)"
    )
    aga: Literal["none", "moment", "schur"] = Field(
        default="none",
        description="align fitted levels to the moment, or to what is not taken over",
    )
    fallback: Literal["row", "block"] = Field(
        default="row", description="what stays unaligned where a row cannot be: it, or its block"
    )
    reorder: Literal["none", "similarity"] = Field(
        default="none", description="blocks of the columns that are most alike; stores their order"
    )
    carry: Literal["columns", "blocks"] = Field(
        default="columns",
        description="who hands drift on with target=sequential: columns, or blocks (release)",
    )
    spare: Literal["none", "products"] = Field(
        default="none",
        description="layers without aga and reorder: those that read a gated product (down_proj)",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "Pt2Lower":
        if not self.iterations and (self.update, self.keep) != ("joint", "last"):
            raise ValueError("iterations=0 reads neither update nor keep")
        if self.aga == "none" and self.fallback != "row":
            raise ValueError("aga=none does not read fallback")
        if self.aga == "none" and self.reorder == "none" and self.spare != "none":
            raise ValueError("spare says where neither aga nor reorder acts, and both are off")
        if self.carry != "columns" and self.target == "whole":
            raise ValueError("target=whole does not read carry")
        return self

    def needs(self) -> Kinds:
        """Alignment to the moment reads it."""
        return (*super().needs(), Moment) if self.aga == "moment" else super().needs()

    def spares(self, graph: LayerGraph, node: Node) -> bool:
        """Whether a layer goes without alignment and reordering: it reads a gated product."""
        return self.spare == "products" and reads_gated_product(graph, node)

    def codec(self, graph: LayerGraph, node: Node) -> ShiftedTernary:
        """The format of one layer."""
        return ShiftedTernary(
            rows=node.rows,
            columns=node.columns,
            group=self.group,
            reordered=self.reorder != "none" and not self.spares(graph, node),
        )

    def forecast_codec(self, unit: Forecast, node: Node) -> ShiftedTernary:
        """What a layer will be stored as; known from the options and the graph."""
        return self.codec(unit.graph, node)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop, and the fit of each block; the inverse moment where columns are reordered."""
        nbytes, work = self.loop_effort(unit, node, self.group)
        weights = node.rows * node.columns
        work += Work(elements=weights * READS * min(self.iterations, USUAL_ITERATIONS))
        if self.aga != "none" and not self.spares(unit.graph, node):
            work += Work(exact=2 * weights * self.group)
        if self.codec(unit.graph, node).reordered:
            squares = node.columns**2
            nbytes += 3 * 8 * squares + 2 * 4 * squares
            work += Work(exact=2 * squares * node.columns)
        return nbytes, work

    def lower(self, unit: Unit, node: Node) -> tuple[Pt2, Tensors]:
        """Quantize the blocks of a layer, left to right or in the order of likeness."""
        codec, slices = self.codec(unit.graph, node), block_slices(node.columns, self.group)
        align = self.aga != "none" and not self.spares(unit.graph, node)
        moment: Tensor | None = None
        if align and self.aga == "moment":
            moment = unit.get(unit.graph.require(node.name, Moment).tensor)
        iterations, unaligned = [0], [0]

        def fit(columns: Tensor, block: Tensor, triangle: Tensor) -> tuple[TernaryGrid, Tensor]:
            fitted = fit_ternary(block, self.iterations, self.start, self.update, self.keep)
            iterations.append(fitted.iterations)
            grid, codes = TernaryGrid(fitted.scale, fitted.shift), fitted.codes
            if align:
                metric = block_metric(triangle).full
                if moment is not None:
                    metric = moment[columns][:, columns]
                grid, codes, left = self.align(block, grid, codes, metric)
                unaligned.append(left)
            return grid, grid.dense(codes)

        order: Tensor | None = None
        if codec.reordered:
            grids, order, dense = self.quantize_alike(unit, node, fit)
        else:
            every = torch.arange(node.columns, device=unit.device)
            grids, dense = self.quantize(
                unit, node, slices, lambda index, *given: fit(every[slices[index]], *given)
            )
        codes = [grid.encode(dense[:, part]) for grid, part in zip(grids, slices, strict=True)]
        scale = torch.stack([grid.scale for grid in grids], dim=1)
        shift = torch.stack([grid.shift for grid in grids], dim=1)
        note = Pt2(
            codec=codec,
            iterations=max(iterations),
            unaligned=sum(unaligned) if align else None,
        )
        return note, codec.working(torch.cat(codes, dim=1), scale, shift, order)

    def drift_term(
        self, unit: Unit, node: Node, upper: Tensor, slices: Sequence[slice]
    ) -> Tensor | None:
        """As others have it, or from block to block alone."""
        term = super().drift_term(unit, node, upper, slices)
        if term is not None and self.carry == "blocks":
            for part in slices:
                term[part, part] = 0
        return term

    def align(
        self, block: Tensor, grid: TernaryGrid, codes: Tensor, metric: Tensor
    ) -> tuple[TernaryGrid, Tensor, int]:
        """Refit the levels of a block in a metric, the codes fixed.

        Returns:
            The levels, the codes f32[n, g], negated where a scale would have come out below 0, and
            how many rows stay as they were fitted.
        """
        levels, upright = best_levels(block, codes, metric).upright(codes)
        aligned, solved = grid.solve(levels)
        if self.fallback == "block" and not bool(solved.all()):
            return grid, codes, len(block)
        return aligned, torch.where(solved[:, None], upright, codes), int((~solved).sum())

    def quantize_alike(
        self, unit: Unit, node: Node, fit: Callable[[Tensor, Tensor, Tensor], Fitted]
    ) -> tuple[list[TernaryGrid], Tensor, Tensor]:
        """Quantize a layer whose blocks take the columns that are most alike.

        Returns:
            The levels of each block, the order i64[columns], and f32[rows, columns] in that order.
        """
        upper = unit.get(unit.graph.require(node.name, Factor).tensor)
        whole = self.target == "whole"
        weight = target(unit, node, upper, self.asymmetry if whole else 0)
        drift: Drift | None = None
        if self.asymmetry and not whole:
            cross = unit.get(unit.graph.require(node.name, CrossMoment).tensor)
            drift = Drift(cross, self.asymmetry, inside=self.carry == "columns")
        grids: list[TernaryGrid] = []

        def quantize(block: Tensor, columns: Tensor, triangle: Tensor) -> Tensor:
            grid, best = fit(columns, block, triangle)
            if self.feedback:
                metric = block_metric(triangle)
                grid, best = quantize_block(
                    block, best, grid, metric, rounds=self.rounds, sweeps=self.sweeps
                )
            grids.append(grid)
            return best

        order, dense = quantize_reordered(
            weight, upper, self.group, self.compensation, quantize, drift
        )
        return grids, order, dense


def reads_gated_product(graph: LayerGraph, node: Node) -> bool:
    """Whether a layer reads a product with the output of another layer, as down_proj does."""
    (read,) = node.inputs
    source = graph[read]
    return source.op == "mul" and any(graph[name].op == "linear" for name in source.inputs)
