"""Choose the codes of a block column by column, each column seeing the errors of the others.

One loop for every block quantizer that knows its levels (``grids.Grid``). Columns are walked in
Python; all rows of a column move at once, and far columns learn of the moves a part at a time.
Source: related-systems.md A4, A5, 10.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from qdc.numerics.blocks import block_slices
from qdc.numerics.grids import Grid
from qdc.numerics.products import product

PART = 32
"""Columns whose moves are handed on to all others at once, by one product of matrices."""
G = TypeVar("G", bound=Grid)


class Metric(NamedTuple):
    """What an error inside a block costs once all later columns have compensated for it.

    Attributes:
        full: f32[g, g], the Schur complement inv(U_bb^T U_bb).
        order: i64[g], the columns in the order in which they are rounded.
        upper: f32[g, g], factor of the inverse of ``full`` with rows and columns in that order.
    """

    full: Tensor
    order: Tensor
    upper: Tensor


def block_metric(triangle: Tensor, *, by_activation: bool = False) -> Metric:
    """Build the metric of a block from its part of the factor, U_bb.

    Args:
        triangle: f32[g, g], upper triangular.
        by_activation: Round the columns that cost most first. The order is inside the block,
            whose scales belong to columns, so nothing of it is stored.

    Returns:
        The metric, computed in fp64.
    """
    wide = triangle.to(torch.float64)
    identity = torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    inverse = torch.linalg.solve_triangular(wide, identity, upper=True)
    full = inverse @ inverse.T
    if not by_activation:
        natural = torch.arange(len(wide), device=wide.device)
        return Metric(full.float(), natural, triangle)
    order = full.diagonal().argsort(descending=True, stable=True)
    gram = wide.T @ wide
    upper = torch.linalg.cholesky(gram[order][:, order], upper=True)
    return Metric(full.float(), order, upper.float())


def column_feedback(block: Tensor, metric: Metric, grid: Grid) -> Tensor:
    """Round column after column; each one's error is compensated in the columns still to come.

    Args:
        block: f32[n, g], not modified.
        metric: The block's metric.
        grid: The levels.

    Returns:
        f32[n, g], every weight on a level of the grid.
    """
    rest = block.T[metric.order].contiguous()
    dense = torch.empty_like(rest)
    upper = metric.upper
    for part in block_slices(len(rest), PART):
        near, later = rest[part], rest[part.stop :]
        errors = torch.empty_like(near)
        triangle, columns = upper[part, part], metric.order[part].tolist()
        # Views are made for all columns at once: one by one they take as long as the arithmetic.
        views = zip(near.unbind(), errors.unbind(), dense[part].unbind(), strict=True)
        scales = triangle.diagonal().unbind()
        for place, (target, error, result) in enumerate(views):
            result.copy_(grid.nearest(columns[place], target))
            torch.sub(target, result, out=error).div_(scales[place])
            near[place + 1 :].addr_(triangle[place, place + 1 :], error, alpha=-1)
        later.addmm_(upper[part, part.stop :].T, errors, alpha=-1)
    result = torch.empty_like(dense)
    result[metric.order] = dense
    return result.T.contiguous()


def coordinate_sweeps(
    block: Tensor, dense: Tensor, metric: Metric, grid: Grid, sweeps: int
) -> Tensor:
    """Move one column at a time to its best levels, all other columns fixed.

    The cost tr(E M E^T) never rises but for fp32 rounding.

    Args:
        block: f32[n, g].
        dense: f32[n, g], on the levels of the grid; not modified.
        metric: The block's metric.
        grid: The levels.
        sweeps: Rounds over all columns.

    Returns:
        f32[n, g], on the levels of the grid.
    """
    current = dense.T.contiguous()
    gradient = product(metric.full, block.T - current)
    rows, diagonal = current.unbind(), metric.full.diagonal().unbind()
    for _ in range(sweeps):
        for part in block_slices(len(current), PART):
            columns = metric.order[part]
            near, inside = gradient[columns], metric.full[columns][:, columns]
            moves = torch.empty_like(near)
            views = zip(
                columns.tolist(), near.unbind(), inside.unbind(1), moves.unbind(), strict=True
            )
            for column, slope, reach, move in views:
                now = rows[column]
                best = grid.nearest(column, torch.addcdiv(now, slope, diagonal[column]))
                torch.sub(best, now, out=move)
                near.addr_(reach, move, alpha=-1)
                now.copy_(best)
            gradient.addmm_(metric.full[:, columns], moves, alpha=-1)
    return current.T.contiguous()


def block_cost(block: Tensor, dense: Tensor, metric: Metric) -> float:
    """Output error of a block in its metric, tr(E M E^T), summed over rows; the sum in fp64."""
    error = block - dense
    return float((product(error, metric.full) * error).sum(dtype=torch.float64))


def quantize_block(
    block: Tensor,
    start: Tensor | None,
    grid: G,
    metric: Metric,
    *,
    rounds: int = 0,
    sweeps: int = 0,
    gains: list[float] | None = None,
) -> tuple[G, Tensor]:
    """Alternate column feedback and refits of the scales; keep the best by the exact cost.

    Args:
        block: f32[n, g], as changed by the blocks before.
        start: f32[n, g] on the grid's levels, a first candidate; None without one.
        grid: The first levels.
        metric: The block's metric.
        rounds: Refits of the scales, each followed by feedback anew; 0 for a grid without refit.
        sweeps: Coordinate sweeps after each feedback.
        gains: Takes the cost of each candidate, in the order tried.

    Returns:
        The best grid and the block written out on its levels.

    Raises:
        NotImplementedError: If there are ``rounds``, and the grid has no ``refit``.
    """

    def choose(levels: G, _: Tensor | None) -> Tensor:
        dense = column_feedback(block, metric, levels)
        return coordinate_sweeps(block, dense, metric, levels, sweeps) if sweeps else dense

    return alternate(
        start,
        grid,
        cost=lambda dense: block_cost(block, dense, metric),
        choose=choose,
        refit=lambda levels, dense: levels.refit(block, dense, metric.full),
        rounds=rounds,
        gains=gains,
    )


def alternate(
    start: Tensor | None,
    grid: G,
    *,
    cost: Callable[[Tensor], float],
    choose: Callable[[G, Tensor | None], Tensor],
    refit: Callable[[G, Tensor], tuple[G, Tensor]],
    rounds: int = 0,
    gains: list[float] | None = None,
) -> tuple[G, Tensor]:
    """Choose codes and refit the levels in turn; keep the best by its cost.

    Args:
        start: f32[n, g] on the grid's levels, a first candidate; None without one.
        grid: The first levels.
        cost: Of a block that is written out, f32[n, g].
        choose: Finds codes on some levels, written out. Called with the levels, and what the codes
            before stand for on them once there was a refit.
        refit: Finds levels for codes, and writes these out on them.
        rounds: Refits, each followed by a choice anew.
        gains: Takes the cost of each candidate, in the order tried.

    Returns:
        The best grid and the block written out on its levels.
    """
    costs = [] if gains is None else gains
    best: tuple[float, G, Tensor] | None = None

    def consider(candidate: G, dense: Tensor) -> None:
        nonlocal best
        costs.append(cost(dense))
        if best is None or costs[-1] < best[0]:
            best = (costs[-1], candidate, dense)

    if start is not None:
        consider(grid, start)
    refitted: Tensor | None = None
    for turn in range(rounds + 1):
        dense = choose(grid, refitted)
        consider(grid, dense)
        if turn < rounds:
            try:
                grid, refitted = refit(grid, dense)
            except OverflowError:
                break  # what was found before still fits its stored dtype
            consider(grid, refitted)
    assert best is not None
    return best[1], best[2]
