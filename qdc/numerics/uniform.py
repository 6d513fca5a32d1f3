"""Round to nearest on a uniform grid, the simplest lowering."""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.fields import pack_codes, unpack_codes

__all__ = ["Uniform", "dense_uniform", "fit_uniform", "pack_codes", "unpack_codes"]


class Uniform(NamedTuple):
    """A block on one uniform grid a row: w ~ scale * code + minimum.

    Attributes:
        codes: uint8[n, g].
        scale: f32[n], step of the grid, >= 0, fits fp16 exactly; 0 for a constant row.
        minimum: f32[n], value of code 0, fits fp16 exactly.
    """

    codes: Tensor
    scale: Tensor
    minimum: Tensor


def fit_uniform(block: Tensor, bits: int) -> Uniform:
    """Round each row of a block to its own asymmetric min-max grid.

    Scale and minimum are rounded to fp16 (nearest even) first; codes are then the nearest on the
    rounded grid (ties to even), clamped to it. A constant row is its fp16 rounding.

    Args:
        block: f32[n, g].
        bits: Bits of a code, 1..8.

    Returns:
        Codes and grids.

    Raises:
        ValueError: If ``bits`` is out of range or a weight is not finite.
        OverflowError: If a scale or minimum is not finite in fp16.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"a code has 1 to 8 bits, not {bits}")
    if not bool(block.isfinite().all()):
        raise ValueError("the block holds NaN or infinite numbers")
    highest = 2**bits - 1
    low, high = block.amin(dim=1), block.amax(dim=1)
    minimum = low.to(torch.float16).to(torch.float32)
    scale = ((high - low) / highest).to(torch.float16).to(torch.float32)
    if not bool(minimum.isfinite().all() & scale.isfinite().all()):
        raise OverflowError("a scale or minimum of the block is not finite in fp16")
    steps = (block - minimum[:, None]) / torch.where(scale > 0, scale, 1.0)[:, None]
    codes = steps.round().clamp(0, highest) * (scale > 0)[:, None]
    return Uniform(codes.to(torch.uint8), scale, minimum)


def dense_uniform(u: Uniform) -> Tensor:
    """Write a block out: scale * code + minimum in fp32, product exact, sum rounded once.

    Args:
        u: Codes and grids.

    Returns:
        f32[n, g], in units of the weight.
    """
    return (u.scale[:, None] * u.codes).add_(u.minimum[:, None])
