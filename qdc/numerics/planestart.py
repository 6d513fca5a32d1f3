"""Where levels of {0, 1} planes start: grids of even steps, fitted by least squares.

Source: the highest planes of 8-bit codes are BPDQ's start (arXiv 2602.04163), the grid of K bits
around 0 is DB-LLM's at K = 2 (arXiv 2402.11960).
"""

import torch
from torch import Tensor

from qdc.numerics.planegrid import (
    Coefficients,
    PlaneGrid,
    alternate,
    normal_equations,
    row_costs,
    solve,
    stored_coefficients,
)

START_BITS = 8
"""Bits of the codes whose highest planes are taken."""
OUTERMOST = (0.80, 1.51, 2.15, 2.73)
"""Outermost of the 2^K best levels of a normal distribution, in deviations, for K = 1 to 4."""


def highest_bits(block: Tensor, planes: int) -> Tensor:
    """The highest planes of each row's weights on an even grid of 8 bits from least to largest.

    Args:
        block: f32[n, g].
        planes: K.

    Returns:
        u8[n, g], codes; the highest bit is plane 0.
    """
    least, largest = block.amin(1, keepdim=True), block.amax(1, keepdim=True)
    span = largest - least
    steps = (block - least) / torch.where(span > 0, span, 1.0) * (2**START_BITS - 1)
    codes = steps.round().to(torch.uint8)
    found = torch.zeros_like(codes)
    for k in range(planes):
        found |= (codes >> (START_BITS - 1 - k) & 1) << k
    return found


def fit_bits(
    block: Tensor, planes: int, ridge: float, metric: Tensor | None
) -> tuple[PlaneGrid, Tensor]:
    """Coefficients and an offset of each row by least squares on its highest planes.

    Args:
        block: f32[n, g].
        planes: K.
        ridge: as of ``PlaneGrid``.
        metric: f32[g, g] of the squares; None for the plain ones.

    Returns:
        The levels, and the codes of the highest planes written out on them.

    Raises:
        OverflowError: A coefficient is not finite in fp16.
    """
    codes = highest_bits(block, planes)
    nothing = Coefficients(block.new_zeros(len(block), planes), block.new_zeros(len(block)))
    equations = normal_equations(block, codes, planes, True, metric)
    grid = PlaneGrid(stored_coefficients(*solve(equations, nothing, ridge)), ridge)
    return grid, grid.write(codes)


def fit_with_offset(
    block: Tensor, planes: int, iterations: int, ridge: float
) -> tuple[PlaneGrid, Tensor]:
    """Coefficients and an offset of each row by least squares, codes and numbers in turn.

    From two starts, the better of each row: its highest bits, whose cells reach to the largest
    weight, and even levels as far apart as suits a normal distribution.

    Args:
        block: f32[n, g].
        planes: K.
        iterations: Refits at most, of each.
        ridge: as of ``PlaneGrid``.

    Returns:
        The levels, and the block rounded to them.

    Raises:
        OverflowError: A coefficient is not finite in fp16.
    """
    mean = block.mean(1)
    reach = OUTERMOST[planes - 1] * (block - mean[:, None]).square().mean(1).sqrt()
    step = 2 * reach / (2**planes - 1)
    even = torch.stack([step * 2.0**k for k in reversed(range(planes))], dim=1)
    starts = (
        fit_bits(block, planes, ridge, None)[0],
        PlaneGrid(stored_coefficients(even, mean - reach), ridge),
    )
    return better_rows(block, *(alternate(block, start, iterations) for start in starts))


def better_rows(
    block: Tensor, first: tuple[PlaneGrid, Tensor], second: tuple[PlaneGrid, Tensor]
) -> tuple[PlaneGrid, Tensor]:
    """Of two results, levels and the block on them, the one of less squared error in each row."""
    better = row_costs(block, second[1], None) < row_costs(block, first[1], None)
    chosen = second[0].coefficients.where(better, first[0].coefficients)
    dense = torch.where(better[:, None], second[1], first[1])
    return PlaneGrid(chosen, first[0].ridge), dense


def even_levels(block: Tensor, planes: int, *, mirrored: bool = False) -> PlaneGrid:
    """Even steps around 0 that reach each row's largest weight on one side, without an offset.

    Levels are -s (2^(K-1) - 1) .. s 2^(K-1): plane 0 adds s 2^(K-1), the others take s, 2s ...
    away. ``mirrored`` turns all signs.

    Raises:
        OverflowError: A coefficient is not finite in fp16.
    """
    step = block.abs().amax(1) / 2 ** (planes - 1)
    factors = [2.0 ** (planes - 1), *(-(2.0**k) for k in range(planes - 1))]
    sign = -1 if mirrored else 1
    return PlaneGrid(
        stored_coefficients(torch.stack([sign * f * step for f in factors], dim=1), None)
    )


def fit_without_offset(
    block: Tensor, planes: int, iterations: int, *, mirror: bool
) -> tuple[PlaneGrid, Tensor]:
    """Coefficients of each row by least squares, from even steps on.

    Args:
        block: f32[n, g].
        planes: K.
        iterations: Refits at most.
        mirror: Start from both signs, and keep the better result of each row: without an offset 0
            is a level, so one side has more levels than the other.

    Returns:
        The levels, and the block rounded to them.

    Raises:
        OverflowError: A coefficient is not finite in fp16.
    """
    found = alternate(block, even_levels(block, planes), iterations)
    if not mirror:
        return found
    other = alternate(block, even_levels(block, planes, mirrored=True), iterations)
    return better_rows(block, found, other)
