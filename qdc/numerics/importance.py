"""How much each weight matters to the layer's output: elementwise, by block, and the outliers."""

from collections.abc import Sequence

import torch
from torch import Tensor


def importance(weight: Tensor, upper: Tensor) -> Tensor:
    """Importance Z of every weight (quant-dllm.md 2.2, related-systems.md A6).

    Z_ij = w_ij^2 / U_jj^2: twice the optimal-brain-surgeon loss increase of zeroing w_ij while the
    columns left of j are frozen and those right of it compensate, for the loss that has the
    damped moment as its curvature.

    Args:
        weight: f32[n, m].
        upper: f32[m, m], factor of the damped inverse moment.

    Returns:
        f32[n, m] in output^2, not negative.
    """
    return (weight / upper.diagonal()).square()


def block_scores(weight: Tensor, upper: Tensor, slices: Sequence[slice]) -> tuple[float, ...]:
    """Add up the importance of each block (quant-dllm.md 3); sums in fp64.

    Args:
        weight: f32[n, m].
        upper: f32[m, m], factor of the damped inverse moment.
        slices: The blocks' columns.

    Returns:
        The salience of each block, in output^2.
    """
    elements = importance(weight, upper)
    return tuple(float(elements[:, part].sum(dtype=torch.float64)) for part in slices)


def outlier_weight(importance_block: Tensor, sigma: float, weight: float) -> Tensor:
    """Least-squares weights that favour the outliers of a block (quant-dllm.md 2.3, 2.9 no. 1).

    One-sided: an outlier lies more than ``sigma`` standard deviations above the mean, both over
    the whole block, the deviation unbiased; statistics in fp64. ``weight`` multiplies the squared
    error as it is (the square of the paper's lambda). Equal values hold no outlier, nor does a
    single one.

    Args:
        importance_block: f32[n, g].
        sigma: Threshold in standard deviations, not negative.
        weight: Weight of an outlier, positive.

    Returns:
        f32[n, g]: ``weight`` at outliers, 1 elsewhere.

    Raises:
        ValueError: If ``sigma`` is negative, or ``weight`` not positive and finite.
    """
    if not sigma >= 0:
        raise ValueError(f"sigma must not be negative, but is {sigma}")
    if not 0 < weight < float("inf"):
        raise ValueError(f"an outlier weight is positive and finite, not {weight}")
    ones = torch.ones_like(importance_block)
    if importance_block.numel() < 2:
        return ones
    wide = importance_block.to(torch.float64)
    deviation, mean = torch.std_mean(wide)
    return ones.masked_fill(wide - mean > sigma * deviation, weight)
