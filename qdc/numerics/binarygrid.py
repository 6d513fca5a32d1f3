"""Binary components as a grid of 2^K levels a weight, with scales refitted in any metric."""

from typing import Self

import torch
from torch import Tensor

from qdc.numerics.components import Components, stored
from qdc.numerics.components import dense as write_out
from qdc.numerics.grids import Grid
from qdc.numerics.nearest import nearest_levels, nearest_places
from qdc.numerics.products import product

RIDGE = 1e-6
"""Share of its diagonal added to a system whose components may coincide."""


class BinaryGrid(Grid):
    """The levels sum over k of +-a_k c_k of a block; ``components.signs`` are not read."""

    def __init__(self, components: Components, scale_bits: int = 16) -> None:
        """Tabulate the levels: f32[g, 2^K, n], in the order of addition of ``dense``."""
        self.components, self.scale_bits = components, scale_bits
        order = len(components.row_scale)
        pattern = torch.arange(2**order, device=components.row_scale.device)
        self.patterns = torch.stack([1 - 2 * (pattern >> k & 1) for k in range(order)]).float()
        """f32[K, 2^K], signs by pattern."""
        outer = components.col_scale[:, :, None, None] * components.row_scale[:, None, None, :]
        total = outer[0] * self.patterns[0, :, None]
        for k in range(1, order):
            total = total + outer[k] * self.patterns[k, :, None]
        self.levels = total
        self.sizes = _sizes(total) if order <= 2 else None

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        if self.sizes is None:
            return nearest_levels(self.levels[column], target)
        large, small, middle = self.sizes[column]
        return torch.where(target.abs() > middle, large, small).copysign_(target)

    def encode(self, dense: Tensor) -> Components:
        """Components with the signs that write ``dense`` out, which lies on the levels."""
        distance = (self.levels - dense.T[:, None, :]).abs_()
        choice = nearest_places(distance.transpose(0, 1)).T
        bits = torch.stack([choice >> k & 1 for k in range(len(self.patterns))])
        return self.components._replace(signs=1 - 2 * bits.to(torch.int8))

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit rows by K x K solves, then columns by one solve of K g unknowns."""
        coded = self.encode(dense)
        rows = coded._replace(row_scale=refit_rows(block, coded, metric))
        columns = rows._replace(col_scale=refit_columns(block, rows, metric))
        refitted = stored(columns, self.scale_bits)
        return type(self)(refitted, self.scale_bits), write_out(refitted)


def _sizes(levels: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of f32[g, 2^K, n] the magnitudes at K of 1 or 2: larger, smaller, half way; by column.

    Every level has its negative, so that a weight keeps its sign and goes to the nearer magnitude:
    two comparisons less than among four levels.
    """
    sizes = levels[:, : levels.shape[1] // 2].abs()
    large, small = sizes.amax(1), sizes.amin(1)
    middle = (large + small) / 2
    return list(zip(large.unbind(), small.unbind(), middle.unbind(), strict=True))


def refit_rows(block: Tensor, c: Components, metric: Tensor) -> Tensor:
    """Row scales that minimise tr(E M E^T), signs and column scales fixed.

    Each row is a K x K system of its own: with S_k = c_k o B_k, (S M S^T) a = S M w.

    Args:
        block: f32[n, g].
        c: The components.
        metric: f32[g, g], M.

    Returns:
        f32[K, n].
    """
    part = (c.col_scale[:, None, :] * c.signs).transpose(0, 1)
    weighted = product(part, metric)
    system = weighted @ part.transpose(1, 2)
    target = weighted @ block[:, :, None]
    return _solve(system, target)[:, :, 0].T.contiguous()


def refit_columns(block: Tensor, c: Components, metric: Tensor) -> Tensor:
    """Column scales that minimise tr(E M E^T), signs and row scales fixed.

    One system over all K g column scales: its entry for (k, j) and (l, h) is M_jh times the sum
    over rows of a_k B_k,j a_l B_l,h.

    Args:
        block: f32[n, g].
        c: The components.
        metric: f32[g, g], M.

    Returns:
        f32[K, g].
    """
    order, rows, width = c.signs.shape
    part = (c.row_scale[:, :, None] * c.signs).transpose(0, 1).reshape(rows, order * width)
    system = product(part.T, part) * metric.repeat(order, order)
    target = (part * product(block, metric).repeat(1, order)).sum(0)
    return _solve(system, target[:, None]).reshape(order, width)


def _solve(system: Tensor, target: Tensor) -> Tensor:
    """Solve positive semidefinite systems f32[..., k, k]; an unknown without influence is 0."""
    wide, right = system.to(torch.float64), target.to(torch.float64)
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    safe = torch.where(diagonal > 0, diagonal, 1.0)
    scale = safe.rsqrt()
    unit = wide * scale[..., :, None] * scale[..., None, :]
    identity = torch.eye(unit.shape[-1], dtype=unit.dtype, device=unit.device)
    solved: Tensor = torch.linalg.solve(unit + RIDGE * identity, right * scale[..., None])
    free = solved * scale[..., None]
    return (free * (diagonal > 0)[..., None]).to(torch.float32)
