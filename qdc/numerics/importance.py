"""How much each weight matters to the layer's output: elementwise, by block, and the outliers."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

ImportanceKind = Literal["conditional", "marginal"]


def importance(weight: Tensor, upper: Tensor, kind: ImportanceKind = "conditional") -> Tensor:
    """Importance Z of every weight (quant-dllm.md 2.2, 2.9 no. 3, related-systems.md A6).

    ``conditional``, the released code's: Z_ij = w_ij^2 / U_jj^2, twice the
    optimal-brain-surgeon loss increase of zeroing w_ij while the columns left of j are frozen and
    those right of it compensate, for the loss that has the damped moment as its curvature.
    ``marginal``, the paper's: Z_ij = (w_ij / [M^-1]_jj)^2, with the diagonal of the whole inverse.

    Args:
        weight: f32[n, c], the last columns that ``upper`` has.
        upper: f32[r, c], those columns of the factor of the damped inverse moment; the last c
            rows are its triangle. All rows above it are needed for ``marginal``.
        kind: Which diagonal.

    Returns:
        f32[n, c], not negative; in output^2 if conditional.
    """
    if kind == "marginal":
        return (weight / upper.square().sum(0)).square()
    return (weight / upper[-upper.shape[1] :].diagonal()).square()


def block_scores(
    weight: Tensor, upper: Tensor, slices: Sequence[slice], kind: ImportanceKind = "conditional"
) -> tuple[float, ...]:
    """Add up the importance of each block (quant-dllm.md 3); sums in fp64.

    Args:
        weight: f32[n, m].
        upper: f32[m, m], factor of the damped inverse moment.
        slices: The blocks' columns.
        kind: Which importance.

    Returns:
        The salience of each block, in output^2 if conditional.
    """
    elements = importance(weight, upper, kind)
    return tuple(float(elements[:, part].sum(dtype=torch.float64)) for part in slices)


def outlier_weight(
    importance_block: Tensor, sigma: float, weight: float, *, two_sided: bool = False
) -> Tensor:
    """Least-squares weights that favour the outliers of a block (quant-dllm.md 2.3, 2.9 no. 1).

    An outlier lies more than ``sigma`` standard deviations above the mean, or with ``two_sided``
    away from it, both over the whole block, the deviation unbiased; statistics in fp64. ``weight``
    multiplies the squared error as it is (the square of the paper's lambda). Equal values hold no
    outlier, nor does a single one.

    Args:
        importance_block: f32[n, g].
        sigma: Threshold in standard deviations, not negative.
        weight: Weight of an outlier, positive.
        two_sided: Whether values far below the mean are outliers too.

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
    away = (wide - mean).abs() if two_sided else wide - mean
    return ones.masked_fill(away > sigma * deviation, weight)
