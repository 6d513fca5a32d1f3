"""The search for the scale and the rings of one layer whose outputs do not all count alike.

Source: YAQA's adaptive rounding with the codes of QTIP (arXiv 2505.22988, 2406.11235); the scale is
refitted by the layer's cost at the end, which leaves the rings as they are.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.numerics.ring_search import RingCode
from qdc.numerics.scalefit import stored_scale
from qdc.numerics.two_sided import TwoSidedMetric, quantize_tiles


class TwoSidedRings:
    """The search in rotated coordinates, the last column first.

    States are i64[steps, tiles along, tiles down], in the order of the columns as they are stored.
    """

    def __init__(
        self, code: RingCode, weight: Tensor, metric: TwoSidedMetric, *, columns: int, block: int
    ) -> None:
        """Set up the search.

        Args:
            code: what rings decode to, and how the matrix is cut.
            weight: f32[rows, filled columns].
            metric: what an error of it costs.
            columns: of the layer, without those that fill the last tile up.
            block: columns that hand their errors on together, at most; whole tiles.
        """
        self.trellis, self.tiling = code
        self.metric, self.own = metric, weight
        self.weight = pad(weight, (0, 0, 0, -len(weight) % self.tiling.height))
        rows, wide = self.weight.shape
        self.live = torch.ones_like(self.weight)
        self.live[len(weight) :] = 0
        self.live[:, : wide - columns] = 0  # what fills up stands first, as columns are reversed
        tile = self.tiling.width
        self.width = max(w for w in range(tile, max(block, tile) + 1, tile) if wide % w == 0)
        self.down, self.along = rows // self.tiling.height, wide // self.width

    def run(self, size: float, *, refit: bool) -> tuple[Tensor, Tensor]:
        """Find the scale, f32 of an fp16 number, and the states.

        Args:
            size: root mean square of the weights in units of the levels'.
            refit: fit the scale to the rings at the end.

        Raises:
            OverflowError: If the scale does not fit fp16.
        """
        count = self.live.sum(dtype=torch.float64)
        spread = (self.own.square().sum(dtype=torch.float64) / count).sqrt().float()
        scale = stored_scale(spread / self.trellis.levels.square().mean().sqrt() / size)
        states, units = self.encoded(scale)
        if not refit or not scale > 0:
            return scale, states
        dense = units[: len(self.own)] * scale
        fitted = stored_scale(scale * self.metric.share(self.own, dense))
        if fitted > 0 and self.loss(units, fitted) < self.loss(units, scale):
            scale = fitted
        return scale, states

    def loss(self, units: Tensor, scale: Tensor) -> float:
        """What the errors cost, at a scale."""
        return self.metric.loss(self.own, units[: len(self.own)] * scale)

    def encoded(self, scale: Tensor) -> tuple[Tensor, Tensor]:
        """One pass over the tiles: their states, and what they decode to, f32[rows, columns]."""
        height, width, tile = *self.tiling, self.width
        per = tile // width
        live = self.cut(self.live)
        states = torch.empty(
            self.tiling.size, self.along * per, self.down, dtype=torch.int64, device=live.device
        )

        def encode(down: Tensor, along: Tensor, place: Tensor) -> Tensor:
            counts = live[down, along]
            found = self.trellis.search(self.sequences(place), self.sequences(counts))
            # The last tile of the stored order is the first of these.
            for one in range(per):
                at = (self.along - 1 - along) * per + one
                states[:, at, down] = found.view(len(found), -1, per)[:, :, one]
            values = self.trellis.levels[found].view(width, height, -1, per)
            units = values.permute(2, 1, 3, 0).reshape(place.shape).flip(2)
            return units * counts

        unit = torch.where(scale > 0, scale, torch.ones_like(scale))
        units = quantize_tiles(self.weight / unit, self.metric, height, tile, encode)
        return states, units

    def cut(self, matrix: Tensor) -> Tensor:
        """Cut a matrix into blocks of whole tiles: [down, along, height, columns]."""
        return matrix.view(self.down, self.tiling.height, self.along, self.width).transpose(1, 2)

    def sequences(self, place: Tensor) -> Tensor:
        """The tiles of some blocks as they are stored: f32[steps, blocks times tiles of one]."""
        height, width = self.tiling
        cut = place.flip(2).reshape(len(place), height, -1, width)
        return cut.permute(3, 1, 0, 2).reshape(height * width, -1)
