"""Choose the codes of a block weight by weight, each seeing errors to its left and above it.

Source: YAQA's adaptive rounding (arXiv 2505.22988), here for scalar codes. Once all later columns
have compensated for it, an error E of a block costs tr(A E S E^T), with the curvature A of the loss
by the outputs and the metric S of the block: what the columns hand on does not depend on A. Weights
on one antidiagonal do not see each other, so that they are rounded together; all rows of a part are
done before those below it.
"""

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
        lower: f32[n, n], strictly lower triangular L: with a positive diagonal D it is
            A = (I + L)^T D (I + L).
    """

    full: Tensor
    lower: Tensor


def row_metric(upper: Tensor) -> RowMetric:
    """Build the metric of rows from the factor V of A = inv(V^T V), f32[n, n]; fp64 inside."""
    wide = upper.to(torch.float64)
    identity = torch.eye(len(wide), dtype=torch.float64, device=wide.device)
    root = torch.linalg.solve_triangular(wide, identity, upper=True)
    full = (root @ root.T).float()
    lower = (root * wide.diagonal()).T.tril_(-1)
    return RowMetric(full, lower.float())


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
    rest, dense = block[:, order], torch.empty_like(block)
    along = (metric.upper / metric.upper.diagonal()[:, None]).triu_(1)
    handed = along.T.flip(0, 1).neg_().contiguous()
    error = torch.zeros_like(rest)
    numbers = torch.arange(len(rest), device=rest.device)
    for part in block_slices(len(rest), HEIGHT):
        above = slice(0, part.start)
        shift = product(rows.lower[part, above], error[above])
        _walk(
            _Part(rest[part], shift, rows.lower[part, part].contiguous(), handed),
            (numbers[part], order),
            grid,
            error[part],
            dense[part],
        )
    result = torch.empty_like(dense)
    result[:, order] = dense
    return result


class _Part(NamedTuple):
    """Some rows, their columns counted from the last one.

    Attributes:
        rest: f32[h, g], what is to be met.
        shift: f32[h, g], how rows above the part move it.
        down: f32[h, h], what its rows hand on to each other.
        along: f32[g, g], what columns hand on: to a row's column from those in its row of this.
    """

    rest: Tensor
    shift: Tensor
    down: Tensor
    along: Tensor


def _walk(
    part: _Part, numbers: tuple[Tensor, Tensor], grid: Grid, error: Tensor, dense: Tensor
) -> None:
    """Round the antidiagonals of a part, and fill its ``error`` and ``dense``, f32[h, g]."""
    height, width = part.rest.shape
    across = torch.zeros(width, height, dtype=error.dtype, device=error.device)
    for place in range(width - 1, -height, -1):
        i = slice(max(0, -place), min(height, width - place))
        j = slice(i.start + place, i.stop + place)
        own = (error[i] * part.along[j]).sum(1).add_(part.rest.diagonal(place))
        wanted = (part.down[i] * across[j]).sum(1).add_(part.shift.diagonal(place)).add_(own)
        found = grid.nearest_each(numbers[0][i], numbers[1][j], wanted)
        left = own.sub_(found)
        dense.diagonal(place).copy_(found)
        error.diagonal(place).copy_(left)
        across.diagonal(-place).copy_(left)


def quantize_two_sided(
    block: Tensor,
    start: Tensor,
    grid: G,
    metric: Metric,
    rows: RowMetric,
    *,
    rounds: int = 0,
) -> tuple[G, Tensor]:
    """Alternate feedback on both sides and refits of the scales; keep the best by the exact cost.

    Args:
        block: f32[n, g], as changed by the blocks before.
        start: f32[n, g] on the grid's levels, a first candidate.
        grid: the first levels.
        metric: of the block's columns.
        rows: of its rows.
        rounds: refits of the scales, each followed by feedback anew.

    Returns:
        The best grid and the block written out on its levels.

    Raises:
        NotImplementedError: the grid rounds no single weights, or there are ``rounds`` and it has
            no refit for errors that see each other from row to row.
    """
    return alternate(
        start,
        grid,
        cost=lambda dense: two_sided_cost(block, dense, metric, rows),
        choose=lambda levels: two_sided_feedback(block, metric, rows, levels),
        refit=lambda levels, dense: levels.refit_together(block, dense, metric.full, rows.full),
        rounds=rounds,
    )
