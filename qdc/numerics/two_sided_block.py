"""Choose the codes of a block weight by weight, each seeing errors to its left and above it.

Source: YAQA's adaptive rounding (arXiv 2505.22988), here for scalar codes. Once all later columns
have compensated for it, an error E of a block costs tr(A E S E^T), with the curvature A of the loss
by the outputs and the metric S of the block: what the columns hand on does not depend on A. Weights
on one antidiagonal do not see each other, so that they are rounded together; all rows of a part are
done before those below it.
"""

from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from qdc.numerics.blocks import block_slices
from qdc.numerics.columns import Metric, alternate
from qdc.numerics.grids import Grid
from qdc.numerics.products import product

HEIGHT = 256
"""Rows whose antidiagonals are walked together; what they hand on goes down by one product."""
G = TypeVar("G", bound=Grid)


class RowMetric(NamedTuple):
    """What errors of several rows cost together.

    Attributes:
        full: f32[n, n], the curvature A, damped.
        order: i64[n], the rows in the order in which they are rounded.
        lower: f32[n, n], strictly lower triangular L: with rows and columns in that order, and a
            positive diagonal D, it is A = (I + L)^T D (I + L).
    """

    full: Tensor
    order: Tensor
    lower: Tensor


def row_metric(upper: Tensor) -> RowMetric:
    """Build the metric of rows from the factor V of A = inv(V^T V), f32[n, n]; fp64 inside.

    Rows that cost most are rounded first, while most others are left to compensate for them.
    Nothing of that order is stored.
    """
    wide = upper.to(torch.float64)
    identity = torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    root = torch.linalg.solve_triangular(wide, identity, upper=True)
    full = root @ root.T
    order = full.diagonal().argsort(descending=True, stable=True)
    # From the last row on, for what is handed on goes down: an upper root R with A = R R^T.
    back = order.flip(0)
    root = torch.linalg.cholesky(full[back][:, back]).flip(0, 1)
    lower = (root / root.diagonal()).T.tril(-1)
    return RowMetric(full.float(), order, lower.float())


def two_sided_cost(block: Tensor, dense: Tensor, metric: Metric, rows: RowMetric) -> float:
    """What the errors of a block cost, tr(A E S E^T); the sum in fp64."""
    error = block - dense
    seen = product(product(rows.full, error), metric.full)
    return float((seen * error).sum(dtype=torch.float64))


def two_sided_feedback(block: Tensor, metric: Metric, rows: RowMetric, grid: Grid) -> Tensor:
    """Round weight after weight; what is left of each is compensated to its right and below it.

    Args:
        block: f32[n, g], not modified.
        metric: of the block's columns.
        rows: of its rows.
        grid: the levels.

    Returns:
        f32[n, g], every weight on a level of the grid.
    """
    # Counted from the last column, an antidiagonal is a diagonal, which torch has a view of.
    order = metric.order.flip(0)
    rest, dense = block[rows.order][:, order], torch.empty_like(block)
    along = (metric.upper / metric.upper.diagonal()[:, None]).triu_(1)
    handed = along.T.flip(0, 1).neg_().contiguous()
    error = torch.zeros_like(rest)
    for part in block_slices(len(rest), HEIGHT):
        above = slice(0, part.start)
        given = _Given(
            rest[part],
            product(rows.lower[part, above], error[above]),
            rows.lower[part, part].contiguous(),
            handed,
        )
        _round(given, _Place(grid, rows.order[part], order), error[part], dense[part])
    result = torch.empty_like(dense)
    result[rows.order[:, None], order] = dense
    return result


def two_sided_sweep(
    block: Tensor, dense: Tensor, metric: Metric, rows: RowMetric, grid: Grid
) -> Tensor:
    """Move each weight once to its best level, all that do not move with it as they are.

    Those of one antidiagonal move together, each as if the others stayed: few of them move, and
    what two of them cost together is small, so that the cost falls, but nothing makes sure of it.

    Args:
        block: f32[n, g].
        dense: f32[n, g], on the levels of the grid; not modified.
        metric: of the block's columns.
        rows: of its rows.
        grid: the levels.

    Returns:
        f32[n, g], on the levels of the grid.
    """
    order = metric.order.flip(0)
    columns, current = metric.full[order][:, order].contiguous(), dense[:, order]
    slope = product(product(rows.full, block[:, order] - current), columns)
    numbers = torch.arange(len(block), device=block.device)
    for part in block_slices(len(block), HEIGHT):
        before, below = current[part].clone(), slice(part.stop, len(block))
        near = rows.full[part, part].contiguous()
        _move(slope[part], near, columns, _Place(grid, numbers[part], order), current[part])
        moved = product(product(rows.full[below, part], current[part] - before), columns)
        slope[below] -= moved
    result = torch.empty_like(current)
    result[:, order] = current
    return result


class _Given(NamedTuple):
    """What some rows are to meet, their columns counted from the last one.

    Attributes:
        rest: f32[h, g], what is to be met.
        shift: f32[h, g], how rows above these move it.
        down: f32[h, h], what the rows hand on to each other.
        along: f32[g, g], what columns hand on; the row of a column has what reaches it.
    """

    rest: Tensor
    shift: Tensor
    down: Tensor
    along: Tensor


class _Place(NamedTuple):
    """Where some rows stand on a grid.

    Attributes:
        grid: the levels.
        rows: i64[h], their numbers.
        columns: i64[g], those of the columns.
    """

    grid: Grid
    rows: Tensor
    columns: Tensor

    def nearest(self, i: slice, j: slice, target: Tensor) -> Tensor:
        """Round the weights of a part of a diagonal, f32[k]."""
        return self.grid.nearest_each(self.rows[i], self.columns[j], target)


def _diagonals(height: int, width: int) -> Iterator[tuple[int, slice, slice]]:
    """Diagonals from the upper right corner on: the number, the rows and the columns of each."""
    for number in range(width - 1, -height, -1):
        i = slice(max(0, -number), min(height, width - number))
        yield number, i, slice(i.start + number, i.stop + number)


def _round(given: _Given, place: _Place, error: Tensor, dense: Tensor) -> None:
    """Round some rows, and fill their ``error`` and ``dense``, f32[h, g]."""
    height, width = error.shape
    across = error.new_zeros(width, height)
    for number, i, j in _diagonals(height, width):
        own = (error[i] * given.along[j]).sum(1).add_(given.rest.diagonal(number))
        wanted = (given.down[i] * across[j]).sum(1).add_(given.shift.diagonal(number)).add_(own)
        found = place.nearest(i, j, wanted)
        left = own.sub_(found)
        dense.diagonal(number).copy_(found)
        error.diagonal(number).copy_(left)
        across.diagonal(-number).copy_(left)


def _move(slope: Tensor, rows: Tensor, columns: Tensor, place: _Place, current: Tensor) -> None:
    """Move the weights of some rows, ``current`` f32[h, g], and keep their ``slope`` up."""
    down, along = rows.diagonal(), columns.diagonal()
    for number, i, j in _diagonals(*current.shape):
        now = current.diagonal(number)
        wanted = torch.addcdiv(now, slope.diagonal(number), down[i] * along[j])
        moves = place.nearest(i, j, wanted) - now
        some = moves.nonzero().flatten()
        if len(some):
            moved, reached = moves[some], columns[some + j.start]
            slope.addmm_(rows[:, some + i.start] * moved, reached, alpha=-1)
            now.add_(moves)


def quantize_two_sided(
    block: Tensor,
    start: Tensor,
    grid: G,
    metric: Metric,
    rows: RowMetric,
    *,
    rounds: int = 0,
    sweeps: int = 0,
) -> tuple[G, Tensor]:
    """Alternate feedback on both sides and refits of the scales; keep the best by the exact cost.

    Args:
        block: f32[n, g], as changed by the blocks before.
        start: f32[n, g] on the grid's levels, a first candidate.
        grid: the first levels.
        metric: of the block's columns.
        rows: of its rows.
        rounds: refits of the scales. After each there is feedback anew; with sweeps the codes are
            swept from what they are after the last one, which gains more.
        sweeps: sweeps over the weights at the end.

    Returns:
        The best grid and the block written out on its levels.

    Raises:
        NotImplementedError: the grid rounds no single weights, or there are ``rounds`` and it has
            no refit for errors that see each other from row to row.
    """
    turns = iter(range(rounds + 1))

    def choose(levels: G, dense: Tensor | None) -> Tensor:
        last = next(turns) == rounds
        if dense is None or not (last and sweeps):
            dense = two_sided_feedback(block, metric, rows, levels)
        for _ in range(sweeps if last else 0):
            dense = two_sided_sweep(block, dense, metric, rows, levels)
        return dense

    return alternate(
        start,
        grid,
        cost=lambda dense: two_sided_cost(block, dense, metric, rows),
        choose=choose,
        refit=lambda levels, dense: levels.refit_together(block, dense, metric.full, rows.full),
        rounds=rounds,
    )
