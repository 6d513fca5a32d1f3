"""The binary components of a block: the form in which it is stored, and what it stands for."""

from typing import Final, NamedTuple

import torch
from torch import Tensor

HIGHEST_ORDER: Final = 4


class Components(NamedTuple):
    """A block of order K: the sum over k of (a_k c_k^T) o B_k (quant-dllm.md 2.1).

    Attributes:
        signs: int8[K, n, g], only -1 and +1 (B_k).
        row_scale: f32[K, n], in units of the weight (a_k).
        col_scale: f32[K, g], without unit (c_k).
    """

    signs: Tensor
    row_scale: Tensor
    col_scale: Tensor


def dense(c: Components) -> Tensor:
    """Write a block out (quant-dllm.md 2.1), bit for bit what every kernel must produce.

    fp32: (row_scale * col_scale) * sign for each component, added in ascending k. Products of two
    scales that fit fp16 are exact, so only the additions round, and a fused multiply-add changes
    nothing.

    Args:
        c: The components, K at least 1.

    Returns:
        f32[n, g], in units of the weight.
    """
    total = term(c, 0)
    for k in range(1, c.signs.shape[0]):
        total = total + term(c, k)
    return total


def term(c: Components, k: int) -> Tensor:
    """Write out component ``k`` alone: f32[n, g], rounded once for the product of the scales."""
    return torch.outer(c.row_scale[k], c.col_scale[k]) * c.signs[k]


def canonical(c: Components) -> Components:
    """Remove the freedom of sign, scale and order of the components (quant-dllm.md 2.1).

    Negative scales become positive by flipping a row or a column of signs; each component's
    column scales get mean 1; components are sorted by falling mean row scale, equal ones keeping
    their order. A component whose column scales are all zero stands for nothing and becomes zero
    throughout. ``dense`` changes by fp32 rounding only.

    Args:
        c: The components.

    Returns:
        Equivalent components with scales >= 0.
    """
    row_flip = torch.where(c.row_scale < 0, -1, 1).to(torch.int8)
    col_flip = torch.where(c.col_scale < 0, -1, 1).to(torch.int8)
    signs = c.signs * row_flip[:, :, None] * col_flip[:, None, :]
    col_scale = c.col_scale.abs()
    mean = col_scale.mean(dim=1, keepdim=True)
    row_scale = c.row_scale.abs() * mean
    col_scale = col_scale / torch.where(mean > 0, mean, 1.0)
    falling = torch.argsort(row_scale.mean(dim=1), descending=True, stable=True)
    return Components(signs[falling], row_scale[falling], col_scale[falling])


def stored(c: Components, dtype: torch.dtype = torch.float16) -> Components:
    """Round canonical scales to the dtype of the artifact (quant-dllm.md 4.4 and 8 P).

    Round to nearest even. Row scales below the smallest normal number of the dtype (6e-5 for
    fp16) lose relative precision, and those below half the smallest subnormal (3e-8) become 0.

    Args:
        c: The components.
        dtype: Float type that the artifact stores scales in.

    Returns:
        Canonical components; scales are f32 that fit ``dtype`` exactly.

    Raises:
        OverflowError: If a scale is not finite in ``dtype``.
    """
    signs, row_scale, col_scale = canonical(c)
    row_scale = row_scale.to(dtype).to(torch.float32)
    col_scale = col_scale.to(dtype).to(torch.float32)
    if not bool(row_scale.isfinite().all() & col_scale.isfinite().all()):
        raise OverflowError(f"a scale of the block is not finite in {dtype}")
    return Components(signs, row_scale, col_scale)
