"""The one loop that quantizes a layer block by block and compensates in later columns."""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

from qdc.numerics.columns import block_metric, quantize_block
from qdc.numerics.grids import Grid
from qdc.numerics.products import product
from qdc.numerics.threads import is_small, one_thread

G = TypeVar("G", bound=Grid)
Compensation = Literal["exact", "diag", "none"]


def quantize_blocks(
    weight: Tensor,
    upper: Tensor,
    slices: Sequence[slice],
    compensation: Compensation,
    quantize: Callable[[int, Tensor], Tensor],
    asymmetry: Tensor | None = None,
) -> Tensor:
    """Quantize blocks left to right, moving each one's error to the columns after it.

    With E = W_b - Q_b, later columns change by -E U_bb^-1 U_b,rest. ``exact`` solves with the
    triangle U_bb, which minimises tr(E M E^T) over the later columns given Q_b; ``diag`` keeps
    only the diagonal of U_bb, as the released code does; ``none`` changes nothing
    (quant-dllm.md 2.6, related-systems.md A2). fp32.

    Args:
        weight: f32[n, m], not modified.
        upper: f32[m, m], factor of the damped inverse moment.
        slices: The blocks' columns: adjoining, in order, all of 0..m.
        compensation: The rule.
        quantize: Called as ``quantize(index, block)`` with the block as changed by those before,
            a copy of its own; returns the quantized block written out, of the same shape.
        asymmetry: f32[m, m], strictly upper triangular P of ``asymmetry.asymmetry_term``: column
            after column, those to the right change by W_j P_j as well, before the block is
            quantized. With blocks of one column this is GPTAQ's update exactly; in wider ones
            the error inside a block hands nothing on, so any block quantizer can take part.

    Returns:
        f32[n, m], the quantized blocks side by side.

    Raises:
        ValueError: If the rule is unknown, the blocks do not tile the columns, or a shape is off.
    """
    if compensation not in get_args(Compensation):
        raise ValueError(f"compensation is one of {get_args(Compensation)}, not {compensation!r}")
    _require_tiling(slices, weight.shape[1])
    if upper.shape != (weight.shape[1], weight.shape[1]):
        raise ValueError(f"factor {tuple(upper.shape)} does not fit weight {tuple(weight.shape)}")
    if asymmetry is not None and asymmetry.shape != upper.shape:
        raise ValueError(f"asymmetry {tuple(asymmetry.shape)} is not {tuple(upper.shape)}")
    rest = weight.to(torch.float32, copy=True)
    dense = torch.empty_like(rest)
    for index, part in enumerate(slices):
        current = rest[:, part]
        if asymmetry is not None:
            current = _drifted(current, asymmetry[part, part])
            rest[:, part.stop :] += product(current, asymmetry[part, part.stop :])
        with one_thread(where=is_small(current)):
            quantized = quantize(index, current.clone(memory_format=torch.contiguous_format))
        if quantized.shape != current.shape:
            raise ValueError(
                f"block {index}: quantized {tuple(quantized.shape)}, not {tuple(current.shape)}"
            )
        dense[:, part] = quantized
        if compensation == "none" or part.stop == weight.shape[1]:
            continue
        error = current - dense[:, part]
        triangle = upper[part, part]
        if compensation == "exact":
            error = torch.linalg.solve_triangular(triangle, error, upper=True, left=False)
        else:
            error = error / triangle.diagonal()
        rest[:, part.stop :] -= product(error, upper[part, part.stop :])
    return dense


def quantize_on_grids(
    weight: Tensor,
    upper: Tensor,
    slices: Sequence[slice],
    fit: Callable[[Tensor], G],
    *,
    rounds: int = 0,
    sweeps: int = 0,
    by_activation: bool = False,
    asymmetry: Tensor | None = None,
) -> tuple[list[G], Tensor]:
    """Quantize a layer on a grid for each block, with exact feedback inside and between blocks.

    What a quantizer brings is its grid. A block is what ``columns.quantize_block`` makes of it, and
    ``quantize_blocks`` moves its error on to the blocks to come.

    Args:
        weight: f32[n, m], not modified.
        upper: f32[m, m], factor of the damped inverse moment.
        slices: The blocks' columns: adjoining, in order, all of 0..m.
        fit: Gives the first grid of a block, f32[n, g], as changed by the blocks before.
        rounds: Refits of each grid, each followed by feedback anew; 0 for a grid without refit.
        sweeps: Coordinate sweeps after each feedback.
        by_activation: Round the columns of a block that cost most first.
        asymmetry: As for ``quantize_blocks``.

    Returns:
        The grid of each block, and f32[n, m] on their levels.

    Raises:
        OverflowError: If ``fit`` meets a scale that does not fit its stored dtype.
        ValueError: As ``quantize_blocks`` does.
    """
    grids: list[G] = []

    def quantize(index: int, block: Tensor) -> Tensor:
        part = slices[index]
        metric = block_metric(upper[part, part], by_activation=by_activation)
        grid, best = quantize_block(block, None, fit(block), metric, rounds=rounds, sweeps=sweeps)
        grids.append(grid)
        return best

    return grids, quantize_blocks(weight, upper, slices, "exact", quantize, asymmetry)


def _drifted(block: Tensor, asymmetry: Tensor) -> Tensor:
    """Add to each column what those to its left, themselves changed so, hand on: V (I - P) = W."""
    identity = torch.eye(len(asymmetry), dtype=asymmetry.dtype, device=asymmetry.device)
    drifted: Tensor = torch.linalg.solve_triangular(
        identity - asymmetry, block, upper=True, left=False, unitriangular=True
    )
    return drifted


def residual_cost(weight: Tensor, dense: Tensor, upper: Tensor) -> float:
    """Squared output error in the damped metric: tr(E M E^T) with E = W - Q, M = inv(U^T U).

    Computed in fp64 as the sum of squares of E U^-1, never negative (related-systems.md A4).

    Args:
        weight: f32[n, m], before any compensation.
        dense: f32[n, m], quantized.
        upper: f32[m, m], factor of the damped inverse moment.

    Returns:
        The cost in output^2, summed over rows.
    """
    error = weight.to(torch.float64) - dense.to(torch.float64)
    scaled = torch.linalg.solve_triangular(upper.to(torch.float64), error, upper=True, left=False)
    return float(scaled.square().sum())


def _require_tiling(slices: Sequence[slice], columns: int) -> None:
    """Refuse slices that overlap, leave gaps, or do not end at ``columns``."""
    end = 0
    for part in slices:
        if part.start != end or part.stop <= end or part.step not in (None, 1):
            raise ValueError(f"{part} does not adjoin the blocks before it, which end at {end}")
        end = part.stop
    if end != columns:
        raise ValueError(f"the blocks end at column {end}, not at {columns}")
