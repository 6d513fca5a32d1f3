"""Levels of {0, 1} planes: each weight is an offset plus the coefficients that it switches on.

With K planes a row has 2^K levels, c_0 + sum over k of c_k b_k; without an offset 0 is one of them.
A code holds the bits of a weight, plane k in bit k. Coefficients are refitted by one small
least-squares system a row, in any metric. Source: related-systems.md 3, 13 and 18 (BPDQ).
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from qdc.numerics.grids import Grid

RIDGE = 1e-6
"""Share of its mean diagonal added to a system whose planes may coincide."""
FLOOR = 1e-30
"""Added to the diagonal of a system that may be zero throughout, so that it can be solved."""


class Coefficients(NamedTuple):
    """What a row stores beside its codes, rounded to fp16.

    Attributes:
        planes: f32[n, K], in units of the weight: what bit k adds.
        offset: f32[n], the value of code 0; None where that is 0 and nothing is stored.
    """

    planes: Tensor
    offset: Tensor | None

    def where(self, better: Tensor, other: Self) -> "Coefficients":
        """These where ``better``, bool[n], and the other's elsewhere."""
        planes = torch.where(better[:, None], self.planes, other.planes)
        if self.offset is None or other.offset is None:
            return Coefficients(planes, None)
        return Coefficients(planes, torch.where(better, self.offset, other.offset))


def stored_coefficients(planes: Tensor, offset: Tensor | None) -> Coefficients:
    """Round to what is stored. Raises ``OverflowError`` where fp16 does not hold a number."""
    found = Coefficients(_half(planes), None if offset is None else _half(offset))
    if not all(bool(part.isfinite().all()) for part in found if part is not None):
        raise OverflowError("a coefficient of the planes is not finite in fp16")
    return found


def plane_levels(coefficients: Coefficients) -> Tensor:
    """Every level of every row, f32[2^K, n], by code.

    In fp32: the offset, or 0, plus the coefficients that the code switches on, in ascending k.
    """
    planes, offset = coefficients
    zero = planes.new_zeros(len(planes))
    levels = (zero if offset is None else offset)[None]
    for k in range(planes.shape[1]):
        levels = torch.cat([levels, levels + planes[:, k]])
    return levels


class PlaneGrid(Grid):
    """The 2^K levels of each row, the same in all columns of a block."""

    def __init__(self, coefficients: Coefficients, ridge: float = RIDGE) -> None:
        """Tabulate the levels.

        Args:
            coefficients: rounded to what is stored.
            ridge: share of its mean diagonal that is added to the system of a refit.
        """
        self.coefficients, self.ridge = coefficients, ridge
        self.sorted, self.codes = plane_levels(coefficients).sort(dim=0, stable=True)
        self.thresholds = (self.sorted[1:] + self.sorted[:-1]) / 2

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        rank = (target > self.thresholds).sum(0, keepdim=True)
        return self.sorted.gather(0, rank)[0]

    def round(self, block: Tensor) -> Tensor:
        """Round a whole block to its nearest levels, f32[n, g]."""
        return self.sorted.T.gather(1, _rank(block, self.thresholds, strict=True))

    def encode(self, dense: Tensor) -> Tensor:
        """Codes u8[n, g] that write ``dense`` out, which lies on the levels."""
        rank = _rank(dense, self.sorted[1:], strict=False)
        return self.codes.T.gather(1, rank).to(torch.uint8)

    def write(self, codes: Tensor) -> Tensor:
        """The levels of codes, u8[n, g], as f32[n, g]."""
        return plane_levels(self.coefficients).T.gather(1, codes.long())

    def refit(
        self, block: Tensor, dense: Tensor, metric: Tensor | None
    ) -> tuple["PlaneGrid", Tensor]:
        """Refit each row's coefficients by one system of K or K + 1 unknowns.

        A row stays as it is where that gains nothing, so no row's cost rises. ``metric`` None is
        the plain squared error.
        """
        codes = self.encode(dense)
        equations = normal_equations(
            block, codes, self.coefficients.planes.shape[1], self.with_offset, metric
        )
        found = solve(equations, self.coefficients, self.ridge)
        # What overflows is infinite here and never better.
        moved = PlaneGrid(found, self.ridge).write(codes)
        better = row_costs(block, moved, metric) < row_costs(block, dense, metric)
        grid = PlaneGrid(found.where(better, self.coefficients), self.ridge)
        return grid, torch.where(better[:, None], moved, dense)

    @property
    def with_offset(self) -> bool:
        """Whether a row stores the value of code 0."""
        return self.coefficients.offset is not None


class Equations(NamedTuple):
    """Normal equations of the coefficients of each row; the offset, if any, comes last.

    Attributes:
        gram: f64[n, q, q], S M S^T with a row of S for each plane, and one of ones.
        right: f64[n, q], S M w.
    """

    gram: Tensor
    right: Tensor


def normal_equations(
    block: Tensor, codes: Tensor, planes: int, offset: bool, metric: Tensor | None
) -> Equations:
    """Build the system of each row.

    Args:
        block: f32[n, g], what is to be met.
        codes: u8[n, g].
        planes: K, bits of a code.
        offset: Whether code 0 has a value of its own.
        metric: f32[g, g], M; None for the identity.
    """
    switches = [codes >> k & 1 for k in range(planes)]
    if offset:
        switches.append(torch.ones_like(codes))
    switched = torch.stack(switches, dim=1).double()
    weighted = switched if metric is None else switched @ metric.double()
    return Equations(
        weighted @ switched.transpose(1, 2), (weighted @ block.double()[:, :, None])[:, :, 0]
    )


def solve(equations: Equations, before: Coefficients, ridge: float) -> Coefficients:
    """Solve the system of each row; what no weight switches on keeps its coefficient.

    The offset is fitted again to the rounded coefficients. Overflow gives infinite numbers.
    """
    gram, right = equations
    diagonal = gram.diagonal(dim1=1, dim2=2)
    damped = gram + torch.diag_embed((ridge * diagonal.mean(1) + FLOOR)[:, None].expand_as(right))
    solution: Tensor = torch.linalg.solve(damped, right[:, :, None])[:, :, 0]
    count = before.planes.shape[1]
    used = diagonal[:, :count] > 0
    planes = torch.where(used, _half(solution[:, :count]), before.planes)
    if before.offset is None:
        return Coefficients(planes, None)
    explained = (gram[:, count, :count] * planes.double()).sum(1)
    return Coefficients(planes, _half((right[:, count] - explained) / diagonal[:, count]))


def alternate(block: Tensor, grid: PlaneGrid, iterations: int) -> tuple[PlaneGrid, Tensor]:
    """Alternate nearest levels and refits in the plain squared error.

    Args:
        block: f32[n, g].
        grid: The first levels.
        iterations: Refits at most; it ends where no row moves.

    Returns:
        The last grid, and the block rounded to its nearest levels.
    """
    for _ in range(iterations):
        refitted, _ = grid.refit(block, grid.round(block), None)
        still = torch.equal(refitted.sorted, grid.sorted)
        grid = refitted
        if still:
            break
    return grid, grid.round(block)


def row_costs(block: Tensor, dense: Tensor, metric: Tensor | None) -> Tensor:
    """``f64[n]``: E M E^T of each row."""
    error = (block - dense).double()
    weighted = error if metric is None else error @ metric.double()
    return (weighted * error).sum(1)


def _rank(values: Tensor, bounds: Tensor, *, strict: bool) -> Tensor:
    """How many bounds, f32[b, n] in ascending order, lie below each value of f32[n, g]."""
    rank = torch.zeros_like(values, dtype=torch.int64)
    for bound in bounds:
        rank += values > bound[:, None] if strict else values >= bound[:, None]
    return rank


def _half(value: Tensor) -> Tensor:
    return value.to(torch.float16).to(torch.float32)
