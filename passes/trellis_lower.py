"""Rotate a layer on both sides, and encode its columns as trellis codes: 1 to 4 bits a weight.

Source: QTIP (arXiv 2406.11235) without its fine-tuning. Rotations and LDLQ are those of quip-lower;
in the place of lattice points stand tiles, each a ring of bits whose windows of ``window`` bits
decode to one weight. A Viterbi search finds the best ring for a tile; its work doubles with each
bit of a window, the error falls by a few per cent. The published tiles have 16 rows and 16 columns.
Ours are single columns, so that columns see each other's errors, ``block`` of them at a time; the
levels of ``code=quadratic`` reach with windows of 10 bits what random ones need 14 for; ``search``
and ``rounds`` fit the scale to the layer's loss, and ``sweeps`` search each tile again with all
others fixed, which never raises it. ``bits`` may be any eighth: steps take in turn one bit more or
less. ``bits=allocated`` gives each layer the rate that allocate-rates chose for it.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @trellis   2 bits   window 10   rotated by 64 and 512   output error 3.3e-02
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from torch.nn.functional import pad

from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import SEEDS
from qdc.numerics.scalefit import best_scale, output_loss, stored_scale
from qdc.numerics.tiling import LONGEST
from qdc.numerics.trellis import EIGHTHS, HISTORY, SCRATCH, TOGETHER, Code, Window
from qdc.numerics.vector_sweeps import moment_of
from qdc.passkit import (
    CompensatedLowering,
    Field,
    Forecast,
    InvalidGraph,
    Kinds,
    Lowered,
    Node,
    Preset,
    Problem,
    Tensor,
    Tensors,
    Unit,
    Work,
    block_slices,
    model_validator,
    quantize_blocks,
)
from qdc.passkit.rotation import rotated, rotation_bytes

from .allocate_rates import Rate

FACTORS = (1.0, 0.95, 1.05)
"""Of the scale: what ``search`` tries."""
SWEPT = 16
"""Columns whose tiles a sweep searches at a time."""
TRIED = 512
"""About how many rows ``search`` tries scales on; after the rotation one is as good as another."""
READS = 3
"""How often a search reads or writes the cost of a state, for each weight."""


class TrellisCoded(Lowered):
    """A layer as rings of bits, rotated on both sides."""

    tag: ClassVar[str] = "trellis"
    codec: TrellisCode


class TrellisLower(CompensatedLowering):
    """Rotate a layer on both sides, and encode its columns as trellis codes."""

    name: ClassVar[str] = "trellis-lower"
    provides: ClassVar[Kinds] = (TrellisCoded,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "qtip": Preset(
            "stages(calibrate-mcs,sensitivity,trellis-lower{window=12 code=1mad height=16 width=16 "
            "block=16 scale=0.9}),pack",
            2,
            "arXiv 2406.11235",
        ),
        "qtip-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "trellis-lower{asymmetry=1 sweeps=2 rounds=1}),pack",
            2,
            "arXiv 2406.11235, our loop",
        ),
    }

    bits: Annotated[float, Field(ge=1, le=4)] | Literal["allocated"] = Field(
        default=2.0, description="bits a weight, in eighths, or each layer's own by allocate-rates"
    )
    window: Window = Field(default=10, description="bits that decode to one weight")
    code: Code = Field(default="quadratic", description="what a window stands for")
    height: int = Field(default=128, ge=1, le=LONGEST, description="most rows of a tile")
    width: int = Field(default=1, ge=1, le=64, description="columns of a tile")
    block: int = Field(
        default=8, ge=1, le=LONGEST, description="columns that hand their errors on together"
    )
    scale: float = Field(
        default=0.95,
        gt=0,
        le=10,
        description="root mean square of the weights, the levels' being 1",
    )
    search: bool = Field(
        default=False, description="try other scales around it by the layer's loss"
    )
    sweeps: int = Field(default=0, ge=0, le=100, description="sweeps over the tiles")
    rounds: int = Field(
        default=0, ge=0, le=100, description="refits of the scale, each with sweeps anew"
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="which rotations are drawn")

    @model_validator(mode="after")
    def _tiles_can_be(self) -> "TrellisLower":
        if self.bits != "allocated" and self.bits * EIGHTHS != int(self.bits * EIGHTHS):
            raise ValueError(f"bits are in eighths, as 1.5 or 2.125, not {self.bits:g}")
        if self.height * self.width > LONGEST:
            raise ValueError(f"a tile holds at most {LONGEST} weights")
        if self.block % self.width:
            raise ValueError(f"a block of {self.block} columns is no whole number of tiles")
        return self

    def needs(self) -> Kinds:
        """The layers' own rates, where those are asked for."""
        return (*super().needs(), *((Rate,) if self.bits == "allocated" else ()))

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> TrellisCode:
        """Known from the options, the shape, and the layer's rate."""
        if self.bits == "allocated":
            rate = unit.graph.require(node.name, Rate).eighths
        else:
            rate = int(self.bits * EIGHTHS)
        return TrellisCode.of(
            node.rows,
            node.columns,
            rate,
            window=self.window,
            code=self.code,
            height=self.height,
            width=self.width,
        )

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The factor rotated in fp64, then every search over the tiles."""
        weights, squares = node.rows * node.columns, node.columns**2
        nbytes, work = self.compensation_effort(unit, node)
        codec = self.forecast_codec(unit, node)
        states, kept = 1 << self.window, codec.tiling.size << self.window
        tries = 1 + (len(FACTORS) - 1) * self.search * min(1.0, TRIED / node.rows)
        sweeps = self.sweeps * (1 + self.rounds)
        passes = 2 * tries + sweeps
        work += Work(
            products=2 * (tries + sweeps) * 2 * weights * node.columns
            + 4 * passes * states * weights,
            exact=4 * squares * node.columns,
            elements=READS * passes * states * weights,
        )
        searched = max(HISTORY + SCRATCH, TOGETHER * (kept // 2 + states))
        return nbytes + rotation_bytes(node.columns) + 4 * searched + 3 * 8 * weights, work

    def lower(self, unit: Unit, node: Node) -> tuple[TrellisCoded, Tensors]:
        """Rotate, encode, sweep; what is stored are rings, the scale and the seeds."""
        codec = self.forecast_codec(unit, node)
        rate = unit.graph.get(node.name, Rate)
        allowed = None if rate is None else rate.stored_bytes
        if allowed is not None and codec.nbytes > allowed:
            raise InvalidGraph(
                f"the layer takes {codec.nbytes:,} bytes, its allocation counts on {allowed:,}",
                where=[f"%{node.name}"],
            )
        problem, term, seeds = rotated(
            self, unit, node, self.problem(unit, node), seed=self.seed, multiple=codec.width
        )
        search = RingSearch(self, codec, problem, term)
        scale, states = search.run()
        working = {
            "codes": codec.stored_codes(states.flatten(1), search.trellis),
            "scale": scale.half().reshape(1),
            "seeds": seeds,
        }
        return TrellisCoded(codec=codec), working


class RingSearch:
    """The search for one layer's scale and rings, in rotated coordinates, the last column first.

    Rows are filled up to whole tiles; what stands there is encoded as it comes, and counts nowhere.
    States are i64[steps, tiles along, tiles down], in the order of the columns as they are stored.
    """

    def __init__(
        self, step: TrellisLower, codec: TrellisCode, problem: Problem, term: Tensor | None = None
    ) -> None:
        """Set up what every search needs; ``term`` is that of ``quantize_blocks``."""
        self.step, self.upper, self.term = step, problem.upper, term
        self.tiling = codec.tiling
        self.trellis = codec.trellis(problem.weight.device)
        self.moment = moment_of(problem.upper)
        self.weight = pad(problem.weight, (0, 0, 0, -codec.rows % codec.height))
        self.rows, self.columns = self.weight.shape
        self.live = torch.ones_like(self.weight[:, :1])
        self.live[codec.rows :] = 0
        self.filling = self.columns - codec.columns
        """Columns that fill the last tile up: the first ones, as columns are reversed."""

    def run(self) -> tuple[Tensor, Tensor]:
        """Find the scale, f32 of an fp16 number, and the states."""
        size = (
            self.weight.square().sum(dtype=torch.float64) / self.live.sum() / self.columns
        ).sqrt()
        size = size.float() / self.trellis.levels.square().mean().sqrt() / self.step.scale
        best = self.swept(*self.start(size))
        for _ in range(self.step.rounds):
            _, scale, states = best
            dense = self.written(states, scale)
            refitted = best_scale(self.weight, dense, self.moment, scale)
            if refitted == scale or not refitted > 0:
                break
            found = self.swept(refitted, states)
            if not found[0] < best[0]:
                break
            best = found
        return best[1], best[2]

    def start(self, size: Tensor) -> tuple[Tensor, Tensor]:
        """One pass of LDLQ with the scale, or with the best of some: the scale, and the states."""
        if not self.step.search:
            scale = stored_scale(size)
            return scale, self.encoded([scale], self.rows)[0]
        scales = [stored_scale(size * factor) for factor in FACTORS]
        height = self.tiling.height
        tried = min(self.rows, max(TRIED // height, 1) * height)
        found = self.encoded(scales, tried)
        losses = [
            self.loss(self.written(states, scale), tried)
            for scale, states in zip(scales, found, strict=True)
        ]
        best = losses.index(min(losses))
        if tried == self.rows:
            return scales[best], found[best]
        return scales[best], self.encoded(scales[best : best + 1], self.rows)[0]

    def encoded(self, scales: list[Tensor], rows: int) -> list[Tensor]:
        """One pass of LDLQ over the first rows with several scales at once: their states.

        What the loop does is linear in the weight, so that weights in units of each scale are rows
        of one problem.
        """
        width = max(self.step.block // self.tiling.width, 1) * self.tiling.width
        slices = block_slices(self.columns, width)
        one, found = torch.ones_like(scales[0]), []
        live = self.live[:rows].repeat(len(scales), 1)
        units = [torch.where(scale > 0, scale, one) for scale in scales]

        def encode(index: int, place: Tensor) -> Tensor:
            counts = self.sequences(self.counts(slices[index], live))
            states = self.trellis.search(self.sequences(place), counts)
            found.append(states.view(self.tiling.size, place.shape[1] // self.tiling.width, -1))
            return self.written(found[-1], one) * live

        weight = torch.cat([self.weight[:rows] / unit for unit in units])
        quantize_blocks(weight, self.upper, slices, self.step.compensation, encode, self.term)
        return list(torch.cat(found[::-1], dim=1).chunk(len(scales), dim=2))

    def swept(self, scale: Tensor, states: Tensor) -> tuple[float, Tensor, Tensor]:
        """Sweep over the tiles: the loss, the scale, and the states. Seams change their places."""
        dense, states = self.written(states, scale), states.clone()
        slope = (self.weight - dense) @ self.moment
        if scale > 0:
            for sweep in range(self.step.sweeps):
                seam = (sweep + 1) % 2 * (self.tiling.size // 2)
                self.sweep(scale, dense, states, slope, seam)
        return self.loss(dense, self.rows), scale, states

    def sweep(self, scale: Tensor, dense: Tensor, states: Tensor, slope: Tensor, seam: int) -> None:
        """Search for all tiles again, some columns at a time; change what lowers the loss.

        Args:
            scale: f32 scalar.
            dense: f32[rows, columns], what the states write out; changed in place.
            states: the states; changed in place.
            slope: f32[rows, columns], (W - Q) M; changed in place.
            seam: the step before which windows stay.
        """
        width, height = self.tiling.width, self.tiling.height
        for part in block_slices(self.columns, max(SWEPT // width, 1) * width):
            tiles = [slice(s, s + width) for s in range(part.start, part.stop, width)]
            inverses = [torch.linalg.inv(self.moment[t, t].double()).float() for t in tiles]
            wanted = [slope[:, t] @ inverse for t, inverse in zip(tiles, inverses, strict=True)]
            targets = self.sequences((dense[:, part] + torch.cat(wanted, dim=1)) / scale)
            held = states[:, self.natural(part)]
            counts = self.sequences(self.counts(part, self.live))
            found = self.trellis.again(targets, counts, held.flatten(1), seam)
            offered = found.view(held.shape)
            step = (self.written(offered, scale) - dense[:, part]) * self.live
            left, metric = slope[:, part].clone(), self.moment[part, part]
            for index, tile in enumerate(tiles):
                at = slice(tile.start - part.start, tile.stop - part.start)
                own = step[:, at]
                change = ((own @ metric[at, at] - 2 * left[:, at]) * own).sum(1)
                better = change.view(-1, height).sum(1) < 0
                own = own * better.repeat_interleave(height)[:, None]
                step[:, at] = own
                left -= own @ metric[at]
                at_natural = len(tiles) - 1 - index
                held[:, at_natural] = torch.where(
                    better, offered[:, at_natural], held[:, at_natural]
                )
            dense[:, part] += step
            slope.addmm_(step, self.moment[part], alpha=-1)

    def loss(self, dense: Tensor, rows: int) -> float:
        """tr(E M E^T) of the first rows, the sum in fp64."""
        return output_loss(self.weight[:rows], dense * self.live[:rows], self.moment)

    def counts(self, part: slice, live: Tensor) -> Tensor:
        """Whether the weights of some columns count, f32[rows, columns], 0 or 1."""
        columns = torch.arange(self.columns, device=live.device)[part]
        return live * (columns >= self.filling)

    def natural(self, part: slice) -> slice:
        """The tiles of some columns as they are stored."""
        width = self.tiling.width
        return slice((self.columns - part.stop) // width, (self.columns - part.start) // width)

    def sequences(self, place: Tensor) -> Tensor:
        """Cut columns into the sequences of tiles, as they are stored: f32[steps, tiles]."""
        return self.tiling.sequences(place.flip(1))

    def written(self, states: Tensor, scale: Tensor) -> Tensor:
        """The columns of these states, f32[rows, columns]."""
        values = self.trellis.levels[states.flatten(1)] * scale
        rows = states.shape[2] * self.tiling.height
        return self.tiling.matrix(values, rows, states.shape[1] * self.tiling.width).flip(1)
