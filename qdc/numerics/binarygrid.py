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
TOGETHER = 128
"""Rows whose scales are solved for at once, where rows see each other."""


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
        self.table = _sizes(total) if order <= 2 else None
        """f32[3, g, n], magnitudes at K of 1 or 2: larger, smaller, half way."""
        self.sizes: list[tuple[Tensor, ...]] = []
        if self.table is not None:
            # For all columns at once: one by one views take as long as the arithmetic.
            self.sizes = list(zip(*(each.unbind() for each in self.table), strict=True))

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        if self.table is None:
            return nearest_levels(self.levels[column], target)
        return _of_sizes(self.sizes[column], target)

    def nearest_each(self, rows: Tensor, columns: Tensor, target: Tensor) -> Tensor:
        """Round single weights."""
        if self.table is None:
            return nearest_levels(self.levels[columns, :, rows].T, target)
        return _of_sizes(self.table[:, columns, rows].unbind(), target)

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
        return self._stored(rows._replace(col_scale=refit_columns(block, rows, metric)))

    def refit_together(
        self, block: Tensor, dense: Tensor, metric: Tensor, rows: Tensor
    ) -> tuple[Self, Tensor]:
        """Refit some rows at a time by one solve, then columns by one solve of K g unknowns."""
        coded = self.encode(dense)
        found = coded._replace(row_scale=refit_rows_together(block, coded, metric, rows))
        return self._stored(
            found._replace(col_scale=refit_columns(block, found, metric, rows=rows))
        )

    def _stored(self, fitted: Components) -> tuple[Self, Tensor]:
        refitted = stored(fitted, self.scale_bits)
        return type(self)(refitted, self.scale_bits), write_out(refitted)


def _of_sizes(sizes: tuple[Tensor, ...], target: Tensor) -> Tensor:
    """Round f32[n] to the nearer of two magnitudes; a weight keeps its sign."""
    large, small, middle = sizes
    return torch.where(target.abs() > middle, large, small).copysign_(target)


def _sizes(levels: Tensor) -> Tensor:
    """Of f32[g, 2^K, n] the magnitudes at K of 1 or 2: larger, smaller, half way; f32[3, g, n].

    Every level has its negative, so that a weight keeps its sign and goes to the nearer magnitude:
    two comparisons less than among four levels.
    """
    sizes = levels[:, : levels.shape[1] // 2].abs()
    large, small = sizes.amax(1), sizes.amin(1)
    middle = (large + small) / 2
    return torch.stack([large, small, middle])


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


def refit_rows_together(block: Tensor, c: Components, metric: Tensor, rows: Tensor) -> Tensor:
    """Row scales that lower tr(A E M E^T), signs and column scales fixed.

    Some rows after the others, each time the minimiser with all other rows as they are, so that no
    step raises the cost: one system over the K scales of each of these rows.

    Args:
        block: f32[n, g].
        c: The components.
        metric: f32[g, g], M.
        rows: f32[n, n], A.

    Returns:
        f32[K, n].
    """
    order = len(c.signs)
    scales, error = c.row_scale.clone(), block - write_out(c)
    for start in range(0, len(block), TOGETHER):
        own = slice(start, start + TOGETHER)
        part = (c.col_scale[:, None, :] * c.signs[:, own]).transpose(0, 1).flatten(0, 1)
        weighted = product(part, metric)
        near = rows[own, own].repeat_interleave(order, 0).repeat_interleave(order, 1)
        error[own] = block[own]
        force = product(rows[own], error).repeat_interleave(order, 0)
        target = (weighted * force).sum(1)
        solved = _solve(product(weighted, part.T) * near, target[:, None]).view(-1, order)
        scales[:, own] = solved.T
        error[own] -= (solved[:, :, None] * part.view(len(solved), order, -1)).sum(1)
    return scales


def refit_columns(
    block: Tensor, c: Components, metric: Tensor, *, rows: Tensor | None = None
) -> Tensor:
    """Column scales that minimise tr(A E M E^T), signs and row scales fixed.

    One system over all K g column scales: its entry for (k, j) and (l, h) is M_jh times the sum
    over rows of a_k B_k,j a_l B_l,h, or where rows see each other that over pairs of them.

    Args:
        block: f32[n, g].
        c: The components.
        metric: f32[g, g], M.
        rows: f32[n, n], A; the identity if not given.

    Returns:
        f32[K, g].
    """
    order, height, width = c.signs.shape
    part = (c.row_scale[:, :, None] * c.signs).transpose(0, 1).reshape(height, order * width)
    seen = part if rows is None else product(rows, part)
    system = product(part.T, seen) * metric.repeat(order, order)
    target = (seen * product(block, metric).repeat(1, order)).sum(0)
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
