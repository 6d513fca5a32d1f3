"""Quantize a layer tile by tile, each error handed on to later columns and to later rows.

Source: YAQA's adaptive rounding (arXiv 2505.22988). An error E of a weight costs the predictions
tr(A E M E^T), with the moment M of the inputs and the curvature A of the loss by the outputs. Both
have triangular roots, so that the cost is the squared norm of (I + L) E (I + U) between two block
diagonals, L strictly lower and U strictly upper: each tile is quantized where the errors of tiles
above it and to the left of it want it. Tiles on one antidiagonal do not see each other, so that
they are quantized together.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from qdc.numerics.vector_sweeps import moment_of


class TwoSidedMetric(NamedTuple):
    """What an error costs.

    Attributes:
        rows: f32[n, n], the factor V of the curvature A = inv(V^T V).
        columns: f32[m, m], the factor U of the moment M = inv(U^T U).
    """

    rows: Tensor
    columns: Tensor

    def loss(self, weight: Tensor, dense: Tensor) -> float:
        """Compute tr(A E M E^T) for E = W - Q, f32[n, m], the sum in fp64."""
        error = (weight - dense).double()
        for upper in (self.columns, self.rows):
            error = torch.linalg.solve_triangular(upper.double(), error, upper=True, left=False).T
        return float(error.square().sum())

    def share(self, weight: Tensor, dense: Tensor) -> Tensor:
        """Find the factor of Q at which the loss is least: <W, Q> over <Q, Q>, f32."""
        seen = moment_of(self.rows) @ dense @ moment_of(self.columns)
        with_weight, with_itself = ((seen * x).sum(dtype=torch.float64) for x in (weight, dense))
        return (with_weight / with_itself).float()


def handed_on(upper: Tensor, width: int) -> Tensor:
    """What blocks of columns hand on: f32[m, m], strictly block upper triangular N.

    With M = inv(U^T U) and blocks of ``width`` columns, tr(E M E^T) is the squared norm of
    E (I + N), its blocks multiplied by triangles that stand on the diagonal.

    Args:
        upper: f32[m, m], U.
        width: columns of a block; the last may be narrower.
    """
    wide = upper.double()
    identity = torch.eye(len(wide), dtype=wide.dtype, device=wide.device)
    root = torch.linalg.solve_triangular(wide, identity, upper=True)
    for start in range(0, len(wide), width):
        part = slice(start, start + width)
        root[:, part] = root[:, part] @ wide[part, part]
        root[part, part] = 0
    found: Tensor = root.float()
    return found


def quantize_tiles(
    weight: Tensor,
    metric: TwoSidedMetric,
    height: int,
    width: int,
    quantize: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Quantize tiles from the first rows and columns on, antidiagonal after antidiagonal.

    Args:
        weight: f32[n, m], not modified; ``height`` divides n and ``width`` divides m.
        metric: rows may be fewer than n; those that are left hand nothing on.
        height: rows of a tile.
        width: columns of a tile.
        quantize: called as ``quantize(down, along, place)`` with the numbers of some tiles, i64[k]
            each, and where errors want them, ``f32[k, height, width]``; returns the same shape.

    Returns:
        f32[n, m], the quantized tiles side by side.
    """
    n, m = weight.shape
    down, along = n // height, m // width
    missing = n - len(metric.rows)
    lower = pad(handed_on(metric.rows, height), (0, missing, 0, missing)).T
    rows = lower.reshape(down, height, n)
    # Counted from the last column, the tiles of an antidiagonal stand one after the other.
    columns = handed_on(metric.columns, width).view(m, along, width).permute(1, 0, 2).flip(0)
    tiles = weight.view(down, height, along, width).transpose(1, 2)
    columns, dense = columns.contiguous(), tiles.new_empty(tiles.shape)
    error, seen = weight.new_zeros(down, height, m), weight.new_zeros(along, n, width)
    for diagonal in range(down + along - 1):
        first, last = max(0, diagonal - along + 1), min(down - 1, diagonal)
        i = torch.arange(first, last + 1, device=weight.device)
        j = diagonal - i
        here, back = slice(first, last + 1), along - 1 - diagonal
        there = slice(first + back, last + 1 + back)
        right = torch.bmm(error[here], columns[there])
        place = tiles[i, j] + right + torch.bmm(rows[here], seen[there])
        found = quantize(i, j, place)
        dense[i, j] = found
        own = tiles[i, j] - found
        error.view(down, height, along, width)[i, :, j] = own
        seen.view(along, down, height, width)[along - 1 - j, i] = own + right
    return dense.transpose(1, 2).reshape(n, m)
