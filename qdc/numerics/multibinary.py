"""Data-aware Any-order Quantizer (DAQ): fits binary components to a block."""

import torch
from torch import Tensor

from qdc.numerics.components import (
    Components,
    canonical,
    dense,
    stored,
    term,
)
from qdc.numerics.orders import HIGHEST_ORDER, LOWEST_ORDER

__all__ = [
    "Components",
    "canonical",
    "dense",
    "fit",
    "greedy_start",
    "refit_scales",
    "search_signs",
    "stored",
    "weighted_loss",
]


def weighted_loss(block: Tensor, c: Components, weight: Tensor) -> Tensor:
    """Weighted squared error, the objective of the fit (quant-dllm.md 2.3).

    Args:
        block: f32[n, g].
        c: Components of the same shape.
        weight: f32[n, g], least-squares weights (the square of the paper's Lambda).

    Returns:
        f64 scalar, in weight^2; squares are fp32, their sum is fp64.
    """
    return (weight * (block - dense(c)).square()).sum(dtype=torch.float64)


def greedy_start(block: Tensor, order: int) -> Components:
    """Fit one component after the other to what the earlier ones left (quant-dllm.md 2.4).

    The row scale is a row's mean magnitude, the column scale a column's mean magnitude relative
    to the row scales (a row of zeros counts as 0), the sign that of the residual, +1 for zero.

    Args:
        block: f32[n, g].
        order: Number of components K.

    Returns:
        Unweighted components.

    Raises:
        ValueError: If ``order`` is outside 1..4.
    """
    if not LOWEST_ORDER <= order <= HIGHEST_ORDER:
        raise ValueError(f"order must lie in {LOWEST_ORDER}..{HIGHEST_ORDER}, but is {order}")
    signs, row_scale, col_scale = [], [], []
    rest = block
    for _ in range(order):
        magnitude = rest.abs()
        row = magnitude.mean(dim=1)
        col = (magnitude / torch.where(row > 0, row, 1.0)[:, None]).mean(dim=0)
        sign = torch.where(rest >= 0, 1, -1).to(torch.int8)
        rest = rest - torch.outer(row, col) * sign
        signs.append(sign)
        row_scale.append(row)
        col_scale.append(col)
    return Components(torch.stack(signs), torch.stack(row_scale), torch.stack(col_scale))


def refit_scales(block: Tensor, c: Components, weight: Tensor) -> Components:
    """Refit all scales once, signs fixed (quant-dllm.md 2.5 step 1).

    For k = 1..K: a_k for each row, then c_k for each column with the new a_k, each the weighted
    least-squares minimiser with all other scales fixed, so no half-step raises the loss. There is
    no absolute epsilon in the denominators, see ``_minimiser``.

    Args:
        block: f32[n, g].
        c: Components of the same shape.
        weight: f32[n, g], not negative.

    Returns:
        Components with the same signs.
    """
    row_scale, col_scale = c.row_scale.clone(), c.col_scale.clone()
    current = Components(c.signs, row_scale, col_scale)
    rest = block - dense(c)
    for k in range(c.signs.shape[0]):
        target = rest + term(current, k)
        correlation = weight * target * c.signs[k]
        row_scale[k] = _minimiser(correlation, weight, col_scale[k])
        col_scale[k] = _minimiser(correlation.T, weight.T, row_scale[k])
        rest = target - term(current, k)
    return current


def _minimiser(correlation: Tensor, weight: Tensor, other: Tensor) -> Tensor:
    """Solve a scalar least-squares problem for each row: f32[r, s], f32[r, s], f32[s] -> f32[r].

    ``other`` is brought to a peak of 1 first, so a denominator is at least the weight at the peak
    and needs no epsilon, whatever the size of the block. Where every choice is equally good (a
    dead component, a row of zero weights) the scale becomes 0.
    """
    peak = other.abs().max()
    safe_peak = torch.where(peak > 0, peak, 1.0)
    unit = other / safe_peak
    energy = weight @ unit.square()
    return (correlation @ unit) / torch.where(energy > 0, energy, 1.0) / safe_peak


def search_signs(block: Tensor, c: Components) -> Components:
    """Choose the best of the 2^K sign patterns for each weight (quant-dllm.md 2.5 step 2).

    Exhaustive and joint over the components; least-squares weights cannot change the choice. Ties
    go to the first pattern, in which bit k of the pattern's number, lowest bit first, makes
    component k negative: the first one is all +1. Memory: K + 4 arrays of n x g.

    Args:
        block: f32[n, g].
        c: Components of the same shape; their signs are ignored.

    Returns:
        Components with the same scales.
    """
    order = c.signs.shape[0]
    outers = [torch.outer(c.row_scale[k], c.col_scale[k]) for k in range(order)]
    best = torch.zeros_like(block, dtype=torch.uint8)
    nearest = torch.full_like(block, float("inf"))
    for pattern in range(2**order):
        value = -outers[0] if pattern & 1 else outers[0]
        for k in range(1, order):
            value = value - outers[k] if pattern >> k & 1 else value + outers[k]
        distance = (block - value).abs_()
        # Patterns ascend, so that the last one that was nearer is the largest.
        closer = (distance < nearest).view(torch.uint8) * pattern
        torch.maximum(best, closer, out=best)
        nearest = torch.minimum(nearest, distance)
    signs = torch.stack([1 - 2 * (best >> k & 1).to(torch.int8) for k in range(order)])
    return Components(signs, c.row_scale, c.col_scale)


def fit(
    block: Tensor,
    order: int,
    weight: Tensor,
    sweeps: int = 15,
    tolerance: float = 1e-6,
    *,
    greedy: bool = False,
    scale_bits: int = 16,
) -> tuple[Components, list[float]]:
    """Fit a block and round it to what the artifact stores (quant-dllm.md 2.4, 2.5, 8 H, O, P).

    Greedy start, then sweeps of ``refit_scales`` and, from order 2 on, ``search_signs``; then
    ``stored``, and one last search with the rounded scales. The loss never rises: a sweep that
    raises it, which only fp32 rounding at convergence can do, is dropped and ends the fit.

    Args:
        block: f32[n, g].
        order: Number of components, 1..4.
        weight: f32[n, g], positive least-squares weights.
        sweeps: Most sweeps; of each component if greedy.
        tolerance: Stop once a sweep lowers the loss by less than this share; 0 never does.
        greedy: Fit one component to the end, then the next to what is left, as the paper's text
            has it (2.9 no. 5), instead of all together.
        scale_bits: As for ``stored``.

    Returns:
        The stored components, and the loss after the start and after each sweep (before rounding
        of the scales; of the last component if greedy).

    Raises:
        ValueError: If the order is outside 1..4, the shapes differ, the block is empty, or a
            number in it is not finite.
        OverflowError: If a scale is not finite in fp16.
    """
    if block.ndim != 2 or block.shape != weight.shape or block.numel() == 0:
        raise ValueError(f"block {tuple(block.shape)} and weight {tuple(weight.shape)} do not fit")
    if not bool(block.isfinite().all() & weight.isfinite().all()):
        raise ValueError("the block or its weight holds NaN or infinite numbers")
    if greedy:
        best, losses = _one_by_one(block, order, weight, sweeps, tolerance)
    else:
        best, losses = _alternate(block, greedy_start(block, order), weight, sweeps, tolerance)
    rounded = stored(best, scale_bits)
    return (rounded if greedy else search_signs(block, rounded)), losses


def _alternate(
    block: Tensor, start: Components, weight: Tensor, sweeps: int, tolerance: float
) -> tuple[Components, list[float]]:
    best, losses = start, [float(weighted_loss(block, start, weight))]
    for _ in range(sweeps):
        candidate = refit_scales(block, best, weight)
        if len(start.signs) > 1:
            candidate = search_signs(block, candidate)
        before, loss = losses[-1], float(weighted_loss(block, candidate, weight))
        if loss > before:
            break
        best = candidate
        losses.append(loss)
        if tolerance > 0 and before - loss <= tolerance * before:
            break
    return best, losses


def _one_by_one(
    block: Tensor, order: int, weight: Tensor, sweeps: int, tolerance: float
) -> tuple[Components, list[float]]:
    """Components of their own, each fitted to what is left; signs are those of the rest."""
    rest, parts, losses = block, [], [float("inf")]
    for _ in range(order):
        part, losses = _alternate(rest, greedy_start(rest, 1), weight, sweeps, tolerance)
        parts.append(part)
        rest = rest - term(part, 0)
    signs, rows, columns = (torch.cat(kind) for kind in zip(*parts, strict=True))
    return Components(signs, rows, columns), losses
