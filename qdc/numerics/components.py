"""The binary components of a block: the form in which it is stored, and what it stands for."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.scalecodes import ScaleCode, decode_scales, encode_scales


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


def stored(
    c: Components, scale_bits: int = 16, scale_code: ScaleCode = "logarithmic"
) -> Components:
    """Round canonical scales to what the artifact holds (quant-dllm.md 4.4 and 8 P).

    Nearest even. With 16 bits a scale is fp16: row scales below its smallest normal number (6e-5)
    lose relative precision, and those below half the smallest subnormal (3e-8) become 0. With 8
    bits see ``encode_scales``.

    Args:
        c: The components.
        scale_bits: 16 or 8.
        scale_code: How 8 bits are read; 16 bits need none.

    Returns:
        Canonical components; scales are f32 that fit fp16 exactly.

    Raises:
        OverflowError: If a scale is not finite in fp16.
    """
    signs, row_scale, col_scale = canonical(c)
    row_scale = row_scale.to(torch.float16).to(torch.float32)
    col_scale = col_scale.to(torch.float16).to(torch.float32)
    if not bool(row_scale.isfinite().all() & col_scale.isfinite().all()):
        raise OverflowError("a scale of the block is not finite in fp16")
    if scale_bits == 8:
        row_scale = decode_scales(*encode_scales(row_scale, scale_code), scale_code)
        col_scale = decode_scales(*encode_scales(col_scale, scale_code), scale_code)
    return Components(signs, row_scale, col_scale)


def side_by_side(blocks: Sequence[Components], width: int) -> dict[str, Tensor]:
    """Join the blocks of a layer as they are stored; a narrower one is padded with minus and 0.

    Args:
        blocks: Left to right, with scales that fit fp16.
        width: Columns of a block; P is the sum of the orders.

    Returns:
        ``signs`` i8[n, P, width], ``row_scale`` f16[n, P], ``col_scale`` f16[1, P, width].
    """
    signs = [_padded(c.signs, width, -1).transpose(0, 1) for c in blocks]
    columns = [_padded(c.col_scale, width, 0) for c in blocks]
    return {
        "signs": torch.cat(signs, dim=1).contiguous(),
        "row_scale": torch.cat([c.row_scale.T for c in blocks], dim=1).half().contiguous(),
        "col_scale": torch.cat(columns)[None].half().contiguous(),
    }


def _padded(tensor: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=value)
