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
    grid, dense = alternate(block, even_levels(block, planes), iterations)
    if not mirror:
        return grid, dense
    other, written = alternate(block, even_levels(block, planes, mirrored=True), iterations)
    better = row_costs(block, written, None) < row_costs(block, dense, None)
    chosen = other.coefficients.where(better, grid.coefficients)
    return PlaneGrid(chosen), torch.where(better[:, None], written, dense)
