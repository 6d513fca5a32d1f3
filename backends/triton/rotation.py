"""Rotations of activations: random signs and Hadamard transforms, in fp32.

A Hadamard matrix is the Kronecker product of small ones, so that a transform of 4096 columns is two
products with matrices of 64, which libraries are good at; the order of the additions is another
one than the format's, which the tolerance of kernels covers.
"""

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate

import torch
from torch import Tensor

from qdc.numerics.hadamard import transform_size, walsh_hadamard

FACTOR = 64
"""Columns of a small matrix, at most."""
ROTATED = 1 << 26
"""Numbers that are rotated at a time: they take a few times their bytes in fp32."""


@cache
def _matrix(size: int, device: torch.device) -> Tensor:
    return walsh_hadamard(torch.eye(size), size).to(device)


def transform(values: Tensor, size: int) -> Tensor:
    """Multiply each run of ``size`` columns by the Hadamard matrix over its norm.

    Args:
        values: ``f32[M, width]``, contiguous.
        size: a power of two that divides the width.

    Returns:
        ``f32[M, width]``.
    """
    current, step, left = values, 1, size
    while left > 1:
        factor = min(FACTOR, left)
        matrix = _matrix(factor, values.device)
        if step == 1:
            current = current.view(-1, factor) @ matrix
        else:
            current = matrix @ current.view(-1, factor, step)
        step, left = step * factor, left // factor
    return current.view(values.shape) * (1 / math.sqrt(size))


def rotated_inputs(x: Tensor, signs: Tensor) -> Tensor:
    """Rotate activations as layers want them.

    Args:
        x: ``[M, columns]``.
        signs: ``i8[D, columns]``.

    Returns:
        ``[D, M, columns]`` in the dtype of ``x``, rounded once.
    """
    size = transform_size(x.shape[1])
    found = torch.empty(len(signs), *x.shape, dtype=x.dtype, device=x.device)
    step = max(1, ROTATED // x.shape[1])
    for first in range(0, x.shape[0], step):
        some = x[first : first + step].float()
        for number in range(len(signs)):
            found[number, first : first + step] = transform(some * signs[number], size)
    return found


def rotated_outputs(
    z: Tensor, signs: Tensor, rows: Sequence[int], bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Rotate products back to outputs, each segment for itself.

    Args:
        z: ``[P, M, sum of rows]``, floating point: parts of the products, which are added up first.
        signs: ``i8[sum of rows]``.
        rows: of each segment.
        bias: ``[sum of rows]``.
        dtype: of the outputs.

    Returns:
        ``[M, sum of rows]``, rounded once.
    """
    tokens, outputs = z.shape[1:]
    y = torch.empty(tokens, outputs, dtype=dtype, device=z.device)
    step = max(1, ROTATED // outputs)
    for first in range(0, tokens, step):
        some = z[:, first : first + step].sum(0, dtype=torch.float32)
        for start, stop, size in _runs(tuple(rows)):
            turned = transform(some[:, start:stop].contiguous(), size) * signs[start:stop]
            y[first : first + step, start:stop] = (
                turned if bias is None else turned + bias[start:stop]
            )
    return y


@cache
def _runs(rows: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """First and last output and the size of the transform; neighbours of one size are one run."""
    found: list[tuple[int, int, int]] = []
    for stop, count in zip(accumulate(rows), rows, strict=True):
        start, size = stop - count, transform_size(count)
        if found and found[-1][2] == size:
            start = found.pop()[0]
        found.append((start, stop, size))
    return found
