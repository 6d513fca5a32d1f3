"""Round on uniform grids whose width differs by column group, each range searched by salience.

Source: SliM-LLM (arXiv 2405.14917), its Salience-Weighted Quantizer Calibration (SQC) and GPTQ's
column feedback behind it. Each group's codes have as many bits as ``slim-allocate``, or any other
allocator, gives it. The range from minimum to maximum of a row is stretched and shrunk, and the
least sum of |error|^2.4 decides, with salient weights counted ``salient-weight`` times. A group of
one bit has the levels mean - s and mean + s.

    before   %h0.q = linear %x   w f16[64,512]
                 @orders  2 1 3 2   mean 2
    after        @slim    4 groups of 128   2 1 3 2 bits   output error 5.8e-02

The release: one scale and zero point a row and group; salient is what lies ``sigma`` deviations
above the mean of its whole block; s = mean |w|, not centred, and no search in groups of one bit
(``one-bit=release``); ``salient-weight=1``, which counts all weights the same. Ours: a centred s
that is searched too, sweeps over the columns, refits in the metric of what later columns cannot
take back, ranges down to any ``shrink``; the zero point of one bit in sixteenths of a step, so that
it takes the four bits that the publication counts.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.format.variablewidth import VariableWidth
from qdc.numerics.importance import importance, outlier_weight
from qdc.numerics.zeropoint import ZeroPointGrid, search_span
from qdc.passkit import (
    BlockLowering,
    Factor,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Orders,
    Preset,
    Tensors,
    Unit,
    Work,
    block_slices,
    model_validator,
)

STEPS, SHRINK, GROW, NORM, SIGMA = 50, 0.9, 1.1, 2.4, 2.0
READS = 10
"""About how often a range that is tried reads or writes each weight, for ``qdc plan``."""


class Slim(Lowered):
    """A layer as codes on uniform grids of a width of their own in each column group."""

    tag: ClassVar[str] = "slim"
    codec: VariableWidth


class SlimLower(BlockLowering):
    """Round on uniform grids whose width differs by column group, ranges searched by salience."""

    name: ClassVar[str] = "slim-lower"
    requires: ClassVar[Kinds] = (Factor, Orders)
    provides: ClassVar[Kinds] = (Slim,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "slim": Preset(
            "stages(calibrate-mcs,sensitivity,"
            "slim-allocate{counts=release damp-in-place=0.01 rank=final},"
            "slim-lower{rounds=0 sweeps=0 one-bit=release}),pack",
            2,
            "arXiv 2405.14917",
        ),
        "slim-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},slim-allocate,"
            "slim-lower{asymmetry=1 shrink=0.3}),pack",
            2,
            "arXiv 2405.14917",
        ),
    }

    steps: int = Field(
        default=STEPS, ge=0, le=1000, description="ranges tried on each side of the whole one"
    )
    shrink: float = Field(default=SHRINK, gt=0, le=1, description="share of the narrowest range")
    grow: float = Field(default=GROW, ge=1, le=4, description="share of the widest range")
    norm: float = Field(default=NORM, gt=0, le=8, description="exponent of the error of a range")
    salient_weight: float = Field(
        default=1, gt=0, le=1e6, description="what a salient weight's error counts (release: 1)"
    )
    sigma: float = Field(
        default=SIGMA, gt=0, description="deviations of a salient weight: 2 release, 3 paper"
    )
    deviation: Literal["block", "row"] = Field(
        default="block", description="over what it is taken: all rows of a block (release), or one"
    )
    one_bit: Literal["searched", "release"] = Field(
        default="searched", description="grids of one bit: searched too, or mean and mean |w|"
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "SlimLower":
        unread = {
            "steps=0": ("shrink", "grow", "norm", "salient_weight") if not self.steps else (),
            "salient-weight=1": ("sigma", "deviation") if self.salient_weight == 1 else (),
        }
        for why, options in unread.items():
            for option in options:
                if getattr(self, option) != type(self).model_fields[option].default:
                    raise ValueError(f"{why} does not read {option.replace('_', '-')}")
        return self

    def forecast_codec(self, unit: Forecast, node: Node) -> VariableWidth | None:
        """Widths as the allocation gives them: none where that is not known."""
        orders = unit.graph.get(node.name, Orders)
        return None if orders is None else self.codec(node, orders)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop, the search, and what it writes."""
        orders = unit.graph.get(node.name, Orders)
        width = node.columns if orders is None else orders.widths[0]
        nbytes, work = self.loop_effort(unit, node, width)
        search = Work(elements=READS * (1 + 2 * self.steps) * node.rows * node.columns)
        written = 0 if orders is None else 2 * self.codec(node, orders).working_bytes
        return nbytes + written, work + search

    def codec(self, node: Node, orders: Orders) -> VariableWidth:
        """The fields of one layer."""
        return VariableWidth(
            rows=node.rows,
            columns=node.columns,
            group=-(-orders.widths[0] // 8) * 8,
            bits=orders.blocks,
        )

    def lower(self, unit: Unit, node: Node) -> tuple[Slim, Tensors]:
        """Quantize the groups of a layer left to right."""
        codec = self.codec(node, unit.graph.require(node.name, Orders))
        slices = block_slices(node.columns, codec.group)

        def fit(index: int, block: Tensor, triangle: Tensor) -> tuple[ZeroPointGrid, Tensor]:
            grid = self.levels(block, codec.bits[index], self.emphasis(block, triangle))
            return grid, grid.round(block)

        grids, dense = self.quantize(unit, node, slices, fit)
        codes = [grid.encode(dense[:, part]) for grid, part in zip(grids, slices, strict=True)]
        return Slim(codec=codec), VariableWidth.working(grids, codes)

    def levels(self, block: Tensor, bits: int, weights: Tensor | None = None) -> ZeroPointGrid:
        """Search the grid of each row of a block, f32[n, g].

        Args:
            block: as changed by the blocks before.
            bits: of a code.
            weights: f32[n, g], what each weight counts.
        """
        low, high = span(block, bits, centred=self.one_bit == "searched")
        if not self.steps or (bits == 1 and self.one_bit == "release"):
            return ZeroPointGrid.spanning(low, high, bits)
        factors = self.factors().to(block.device)
        return search_span(block, low, high, bits, factors, self.norm, weights)

    def factors(self) -> Tensor:
        """What a range is multiplied by: 1, then ever narrower, then ever wider, ``f32[t]``."""
        steps = torch.arange(1, self.steps + 1, dtype=torch.float64) / max(1, self.steps)
        ends = [1 + (end - 1) * steps for end in (self.shrink, self.grow) if end != 1]
        return torch.cat([torch.ones(1, dtype=torch.float64), *ends]).float()

    def emphasis(self, block: Tensor, triangle: Tensor) -> Tensor | None:
        """What the error of each weight counts, f32[n, g]; None if all count the same."""
        if self.salient_weight == 1:
            return None
        scores = importance(block, triangle)
        if self.deviation == "block":
            return outlier_weight(scores, self.sigma, self.salient_weight)
        wide = scores.double()
        limit = wide.mean(1, keepdim=True) + self.sigma * wide.std(1, keepdim=True)
        return torch.ones_like(scores).masked_fill(wide > limit, self.salient_weight)


def span(block: Tensor, bits: int, *, centred: bool) -> tuple[Tensor, Tensor]:
    """Where the range of each row of a block begins and ends, both f32[n].

    Args:
        block: f32[n, g].
        bits: of a code; one bit has the levels mean - s and mean + s.
        centred: s is the mean of |w - mean|, or else of |w|.
    """
    if bits > 1:
        return block.amin(dim=1), block.amax(dim=1)
    mean = block.mean(dim=1)
    if not centred:
        size = block.abs().mean(dim=1)
        return mean - size, mean + size
    size = (block - mean[:, None]).abs().mean(dim=1)
    # A zero point lies between the levels: rows that are far on one side of 0 have 0 as a level.
    aside = mean.abs() > size
    low, high = mean.clamp(max=0), mean.clamp(min=0)
    return torch.where(aside, low, mean - size), torch.where(aside, high, mean + size)
