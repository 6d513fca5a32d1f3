"""Rounding to binary levels with gradients: for the latent weights and for all scales.

The forward pass takes the nearest of the 2^K levels. The backward pass hands the gradient through
to the latent weight as if nothing had been rounded (straight-through estimator), and gives each
scale its exact derivative with the signs fixed. Source: learned rounding as in AutoRound (arXiv
2309.05516), on the multi-binary levels instead of a uniform grid.
"""

from typing import Any

import torch
from torch import Tensor


def nearest_signs(latent: Tensor, row_scale: Tensor, col_scale: Tensor) -> Tensor:
    """Signs of the nearest level of every weight; all blocks at once.

    Args:
        latent: f32[n, b, g], blocks side by side.
        row_scale: f32[K, n, b], any sign.
        col_scale: f32[K, b, g], any sign.

    Returns:
        f32[K, n, b, g] of -1 and +1.
    """
    parts = row_scale[..., None] * col_scale[:, None]
    order = len(parts)
    if order == 1:
        return _sign(latent * parts[0])[None]
    if order == 2:
        swap = parts[1].abs() > parts[0].abs()
        high, low = parts
        if swap.any():
            high, low = torch.where(swap, low, high), torch.where(swap, high, low)
        first = _sign(latent * high)
        second = _sign((latent - first * high) * low)
        if swap.any():
            first, second = torch.where(swap, second, first), torch.where(swap, first, second)
        return torch.stack((first, second))
    best = torch.zeros(latent.shape, dtype=torch.uint8, device=latent.device)
    nearest = torch.full_like(latent, torch.inf)
    for pattern in range(2**order):
        distance = (latent - _level(parts, pattern)).abs_()
        best.masked_fill_(distance < nearest, pattern)
        nearest = torch.minimum(nearest, distance)
    return torch.stack([1 - 2 * (best >> k & 1).to(latent.dtype) for k in range(order)])


def latent_start(weight: Tensor, signs: Tensor, row_scale: Tensor, col_scale: Tensor) -> Tensor:
    """Latent weights that round to given signs, as near to the original weights as that allows.

    A weight outside the cell of its level is first moved to just inside; then all go half of the
    way to the level, so that the first steps do not flip those at the edge (measured: 0.080 against
    0.087 in cross-entropy without that, 40 steps, embedded model).

    Args:
        weight: f32[n, b, g].
        signs: f32[K, n, b, g].
        row_scale: f32[K, n, b].
        col_scale: f32[K, b, g].

    Returns:
        f32[n, b, g].
    """
    parts = row_scale[..., None] * col_scale[:, None]
    level = (parts * signs).sum(0)
    above = torch.full_like(level, torch.inf)
    below = torch.full_like(level, -torch.inf)
    for pattern in range(2 ** len(parts)):
        other = _level(parts, pattern)
        above = torch.where(other > level, torch.minimum(above, other), above)
        below = torch.where(other < level, torch.maximum(below, other), below)
    margin = 0.49
    inside = weight.clamp(level + margin * (below - level), level + margin * (above - level))
    return torch.lerp(level, inside, 0.5)


def _level(parts: Tensor, pattern: int) -> Tensor:
    total = torch.zeros_like(parts[0])
    for k, part in enumerate(parts):
        total = total - part if pattern >> k & 1 else total + part
    return total


def _sign(value: Tensor) -> Tensor:
    return torch.ones_like(value).copysign_(value)


class RoundToLevels(torch.autograd.Function):
    """``(latent f32[n, b, g], row_scale f32[K, n, b], col_scale f32[K, b, g]) -> f32[n, b, g]``."""

    @staticmethod
    def forward(ctx: Any, latent: Tensor, row_scale: Tensor, col_scale: Tensor) -> Tensor:
        """Write out the nearest levels."""
        signs = nearest_signs(latent, row_scale, col_scale)
        ctx.save_for_backward(signs, row_scale, col_scale)
        return torch.einsum("knb,kbg,knbg->nbg", row_scale, col_scale, signs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Straight through to the latent weight; exact for the scales."""
        (gradient,) = gradients
        signs, row_scale, col_scale = ctx.saved_tensors
        signed = signs * gradient
        rows = torch.einsum("knbg,kbg->knb", signed, col_scale)
        columns = torch.einsum("knbg,knb->kbg", signed, row_scale)
        return gradient, rows, columns


def round_to_levels(latent: Tensor, row_scale: Tensor, col_scale: Tensor) -> Tensor:
    """Nearest levels with gradients, ``f32[n, b, g]``."""
    result: Tensor = RoundToLevels.apply(latent, row_scale, col_scale)  # type: ignore[no-untyped-call]
    return result
