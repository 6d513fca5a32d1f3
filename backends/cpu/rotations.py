"""Rotations of activations in fp32: by the kernels, or by torch where a transform is too narrow."""

import math
from typing import Literal

import torch
from torch import Tensor

from qdc.numerics.hadamard import transform_size, walsh_hadamard

from . import support


def has_kernel(size: int) -> bool:
    """Whether a kernel transforms runs of so many numbers."""
    from .rotating import LANES

    return size >= LANES


def rotate_inputs(values: Tensor, signs: Tensor) -> Tensor:
    """``x Q`` for the rotation of a layer's inputs, to the last bit as the format says.

    Args:
        values: ``[M, columns]``, floating point.
        signs: ``f16[columns]``, each -1 or +1.

    Returns:
        ``f32[M, columns]``.
    """
    wide, size = values.float(), transform_size(values.shape[1])
    if support.has_compiler() and has_kernel(size):
        found = rotate("inputs", wide.contiguous(), signs)
    else:
        found = walsh_hadamard(wide * signs, size)
    return found.mul_(1 / math.sqrt(size))


def rotate(
    side: Literal["inputs", "outputs"],
    values: Tensor,
    signs: Tensor,
    factor: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """Run a kernel.

    Args:
        side: ``inputs``, whose signs come first, without a factor; or ``outputs``.
        values: ``f32[M, width]``, rows in one piece.
        signs: ``f16[width]``.
        factor: ``f32[1]``, of outputs.
        bias: ``f32[width]``, of outputs.

    Returns:
        ``f32[M, width]``.
    """
    from . import kernels
    from .rotating import LANES

    count, width = values.shape
    steps = (transform_size(width) // LANES).bit_length() - 1
    result = torch.empty(count, width)
    kernels.rotate(side)(
        source=values.data_ptr(),
        source_bytes=4 * values.stride(0),
        count=count,
        width=width,
        twos=steps % 2,
        twice=steps // 2,
        signs=signs.data_ptr(),
        factor=0 if factor is None else factor.data_ptr(),
        bias=0 if bias is None else bias.data_ptr(),
        target=result.data_ptr(),
    )
    return result
