"""Coefficients of {0, 1} planes that many groups share: a table, and a line of it for each group.

Source: SBVR (arXiv 2509.18172, related-systems.md 3) for the form. The fit is ours: every group
gets free coefficients, these are clustered (k-means, weighted by energy), and lines are fitted
again to the groups that choose them. A group's error on a line needs no look at its single weights:
sorted once, with prefix sums, three look-ups a line are enough for two planes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.additive import sums_by_code
from qdc.numerics.planegrid import (
    RIDGE,
    Coefficients,
    Equations,
    PlaneGrid,
    normal_equations,
    plane_levels,
    solve,
    stored_coefficients,
)
from qdc.numerics.planestart import fit_with_offset, fit_without_offset

CHUNK = 1 << 20
"""Pairs of groups and lines that are looked at together."""
FREE_REFITS, CLUSTERINGS = 10, 10
"""Refits of each group's own coefficients at most, and rounds of k-means."""


class SortedRows(NamedTuple):
    """Rows prepared for ``line_errors``, in fp64.

    Attributes:
        values: f64[n, g], ascending.
        sums: f64[n, g + 1], of the first so many values.
        energy: f64[n], sum of squares.
    """

    values: Tensor
    sums: Tensor
    energy: Tensor


def sorted_rows(block: Tensor) -> SortedRows:
    """Sort each row of f32[n, g], and add up."""
    values = block.double().sort(dim=1).values
    sums = torch.nn.functional.pad(values.cumsum(1), (1, 0))
    return SortedRows(values, sums, values.square().sum(1))


def line_errors(rows: SortedRows, levels: Tensor) -> Tensor:
    """Squared error of each row on each set of levels, every weight on its nearest.

    Args:
        rows: n of them, g weights each.
        levels: f64[L, m], ascending in each line.

    Returns:
        f64[n, L].
    """
    count, width = rows.values.shape
    lines, m = levels.shape
    bounds = ((levels[:, 1:] + levels[:, :-1]) / 2).reshape(1, -1).expand(count, -1)
    ends = torch.searchsorted(rows.values, bounds.contiguous()).reshape(count, lines, m - 1)
    ends = torch.nn.functional.pad(ends, (1, 0))
    ends = torch.nn.functional.pad(ends, (0, 1), value=width)
    sums = rows.sums.gather(1, ends.reshape(count, -1)).reshape(ends.shape)
    error = levels.square() * ends.diff(dim=2) - 2 * levels * sums.diff(dim=2)
    return (error.sum(2) + rows.energy[:, None]).clamp(min=0)


class CoefficientTable(NamedTuple):
    """Lines that groups choose from, rounded to fp16: f32[L, K], and offsets f32[L] or None."""

    lines: Coefficients

    def take(self, index: Tensor) -> Coefficients:
        """The coefficients of these lines, i64[n]."""
        planes, offset = self.lines
        return Coefficients(planes[index], None if offset is None else offset[index])

    def nearest_lines(self, block: Tensor) -> Tensor:
        """The line of least squared error for each row of f32[n, g]: i64[n]."""
        levels = plane_levels(self.lines).T.double().sort(dim=1).values
        whole = sorted_rows(block)
        parts = (
            SortedRows(*(numbers[rows] for numbers in whole))
            for rows in chunks(len(block), len(levels))
        )
        return torch.cat([line_errors(part, levels).argmin(1) for part in parts])

    def best_lines(self, equations: Equations) -> Tensor:
        """The line of least cost for each row, its codes fixed: i64[n]."""
        numbers = joined(self.lines).double()
        squares = (numbers[:, :, None] * numbers[:, None, :]).flatten(1)
        found = [
            (
                equations.gram[rows].flatten(1) @ squares.T - 2 * equations.right[rows] @ numbers.T
            ).argmin(1)
            for rows in chunks(len(equations.right), len(numbers))
        ]
        return torch.cat(found)


class TableGrid(PlaneGrid):
    """The levels of the line that each row has chosen."""

    def __init__(self, table: CoefficientTable, index: Tensor) -> None:
        """Tabulate the levels.

        Args:
            table: of the layer.
            index: i64[n], the line of each row.
        """
        super().__init__(table.take(index))
        self.table, self.index = table, index

    def refit(
        self, block: Tensor, dense: Tensor, metric: Tensor | None
    ) -> tuple["TableGrid", Tensor]:
        """Choose each row's line anew, its codes fixed; the table stays as it is."""
        codes = self.encode(dense)
        planes = self.coefficients.planes.shape[1]
        equations = normal_equations(block, codes, planes, self.with_offset, metric)
        grid = TableGrid(self.table, self.table.best_lines(equations))
        return grid, grid.write(codes)


def fit_table(
    weight: Tensor,
    slices: Sequence[slice],
    planes: int,
    *,
    offset: bool,
    lines: int,
    refits: int,
    seed: int,
) -> CoefficientTable:
    """Fit a table to all groups of a layer.

    Args:
        weight: f32[n, m].
        slices: Columns of the groups.
        planes: K.
        offset: Whether a line has the value of code 0.
        lines: L, at most as many as there are groups.
        refits: How often each line is fitted to the groups that choose it.
        seed: Of the groups that the clusters start at.

    Raises:
        OverflowError: A coefficient is not finite in fp16.
    """
    blocks = [weight[:, part].contiguous() for part in slices]
    free = [joined(_canonical(_free_fit(block, planes, offset))) for block in blocks]
    numbers = torch.cat(free)
    energy = torch.cat([block.square().sum(1) for block in blocks])
    numbers = _clusters(numbers.double(), energy.double(), lines, seed)
    table = CoefficientTable(_split(numbers.float(), planes))
    for _ in range(refits):
        table = _refit_lines(table, blocks, planes, offset)
    return table


def joined(coefficients: Coefficients) -> Tensor:
    """Coefficients, and the offset behind them if there is one: f32[n, q]."""
    planes, offset = coefficients
    return planes if offset is None else torch.cat([planes, offset[:, None]], dim=1)


def chunks(rows: int, lines: int) -> Iterator[slice]:
    """Rows in parts whose pairs with all lines fit into memory."""
    step = max(1, CHUNK // lines)
    return (slice(start, start + step) for start in range(0, rows, step))


def _split(numbers: Tensor, planes: int) -> Coefficients:
    """Undo ``joined``, rounded to what is stored."""
    offset = numbers[:, planes] if numbers.shape[1] > planes else None
    return stored_coefficients(numbers[:, :planes], offset)


def _free_fit(block: Tensor, planes: int, offset: bool) -> Coefficients:
    if not offset:
        return fit_without_offset(block, planes, FREE_REFITS, mirror=True)[0].coefficients
    return fit_with_offset(block, planes, FREE_REFITS, RIDGE)[0].coefficients


def _canonical(coefficients: Coefficients) -> Coefficients:
    """Equal levels as equal numbers: planes by falling coefficient, with an offset none below 0."""
    planes, offset = coefficients
    if offset is not None:
        offset = offset + planes.clamp(max=0).sum(1)
        planes = planes.abs()
    return Coefficients(planes.sort(dim=1, descending=True).values, offset)


def _clusters(points: Tensor, energy: Tensor, lines: int, seed: int) -> Tensor:
    """Centres of k-means, f64[L, q], from points that are drawn at random."""
    if lines >= len(points):
        return points
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(points), generator=generator)[:lines]
    centres = points[drawn.to(points.device)]
    for _ in range(CLUSTERINGS):
        parts = chunks(len(points), lines)
        nearest = torch.cat([torch.cdist(points[rows], centres).argmin(1) for rows in parts])
        shares = torch.zeros(lines, dtype=points.dtype, device=points.device)
        _add_up(shares[:, None], energy[:, None], nearest)
        sums = torch.zeros_like(centres)
        _add_up(sums, points * energy[:, None], nearest)
        # A centre that no group is nearest to stays where it is.
        centres = torch.where(
            shares[:, None] > 0, sums / shares.clamp(min=1e-300)[:, None], centres
        )
    return centres


def _add_up(totals: Tensor, values: Tensor, index: Tensor) -> None:
    """Add the values of each line, f64[n, q], to its total, f64[L, q] in place.

    ``index_add_`` adds in random order on CUDA, where ``sums_by_code`` does not.
    """
    if totals.device.type == "cpu":
        totals.index_add_(0, index, values)
    else:
        totals += sums_by_code(values, index, len(totals))


def _refit_lines(
    table: CoefficientTable, blocks: Sequence[Tensor], planes: int, offset: bool
) -> CoefficientTable:
    """Fit each line to all weights of the groups that it is the best line for."""
    numbers = joined(table.lines)
    lines, unknowns = numbers.shape
    gram = torch.zeros(lines, unknowns, unknowns, dtype=torch.float64, device=numbers.device)
    right = torch.zeros(lines, unknowns, dtype=torch.float64, device=numbers.device)
    for block in blocks:
        index = table.nearest_lines(block)
        grid = TableGrid(table, index)
        part = normal_equations(block, grid.encode(grid.round(block)), planes, offset, None)
        _add_up(gram.flatten(1), part.gram.flatten(1), index)
        _add_up(right, part.right, index)
    found = joined(solve(Equations(gram, right), table.lines, RIDGE))
    chosen = gram.diagonal(dim1=1, dim2=2).sum(1) > 0
    # What fp16 does not hold is refused by the rounding.
    return CoefficientTable(_split(torch.where(chosen[:, None], found, numbers), planes))
