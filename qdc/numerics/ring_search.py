"""The search for the scale and the rings of one layer, in coordinates that are rotated already.

Source: LDLQ and its code search of QTIP (arXiv 2406.11235), with the scale tried and refitted by
the layer's loss, and sweeps over tiles of columns that never raise it.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.numerics.blocks import block_slices
from qdc.numerics.feedback import Compensation, quantize_blocks
from qdc.numerics.scalefit import best_scale, output_loss, stored_scale
from qdc.numerics.tiling import Tiling
from qdc.numerics.trellis import Trellis
from qdc.numerics.vector_sweeps import moment_of

FACTORS = (1.0, 0.95, 1.05)
"""Of the scale: what ``search`` tries."""
SWEPT = 16
"""Columns whose tiles a sweep searches at a time."""
TRIED = 512
"""About how many rows ``search`` tries scales on; after the rotation one is as good as another."""


class RingOptions(NamedTuple):
    """How rings are searched: the options of trellis-lower of these names."""

    compensation: Compensation
    block: int
    scale: float
    search: bool
    sweeps: int
    rounds: int


class RingCode(NamedTuple):
    """What rings decode to, and how the matrix is cut."""

    trellis: Trellis
    tiling: Tiling


class RingSearch:
    """The search for one layer's scale and rings, in rotated coordinates, the last column first.

    Rows are filled up to whole tiles; what stands there is encoded as it comes, and counts nowhere.
    States are i64[steps, tiles along, tiles down], in the order of the columns as they are stored.
    """

    def __init__(
        self,
        options: RingOptions,
        code: RingCode,
        weight: Tensor,
        upper: Tensor,
        *,
        columns: int,
        term: Tensor | None = None,
    ) -> None:
        """Set up what every search needs.

        Args:
            options: how it is searched.
            code: what rings decode to, and how the matrix is cut.
            weight: f32[rows, filled columns].
            upper: f32[filled columns, filled columns], the factor.
            columns: of the layer, without those that fill the last tile up.
            term: that of ``quantize_blocks``.
        """
        self.options, self.upper, self.term = options, upper, term
        self.trellis, self.tiling = code
        self.moment = moment_of(upper)
        self.weight = pad(weight, (0, 0, 0, -len(weight) % self.tiling.height))
        self.rows, self.columns = self.weight.shape
        self.live = torch.ones_like(self.weight[:, :1])
        self.live[len(weight) :] = 0
        self.filling = self.columns - columns
        """Columns that fill the last tile up: the first ones, as columns are reversed."""

    def run(self) -> tuple[Tensor, Tensor]:
        """Find the scale, f32 of an fp16 number, and the states."""
        size = (
            self.weight.square().sum(dtype=torch.float64) / self.live.sum() / self.columns
        ).sqrt()
        size = size.float() / self.trellis.levels.square().mean().sqrt() / self.options.scale
        best = self.swept(*self.start(size))
        for _ in range(self.options.rounds):
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
        if not self.options.search:
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
        width = max(self.options.block // self.tiling.width, 1) * self.tiling.width
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
        quantize_blocks(weight, self.upper, slices, self.options.compensation, encode, self.term)
        return list(torch.cat(found[::-1], dim=1).chunk(len(scales), dim=2))

    def swept(self, scale: Tensor, states: Tensor) -> tuple[float, Tensor, Tensor]:
        """Sweep over the tiles: the loss, the scale, and the states. Seams change their places."""
        dense, states = self.written(states, scale), states.clone()
        slope = (self.weight - dense) @ self.moment
        if scale > 0:
            for sweep in range(self.options.sweeps):
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
