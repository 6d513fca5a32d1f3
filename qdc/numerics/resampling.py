"""Resampling of rows along their columns by their spectrum, as matrices.

Zero padding of the real spectrum takes ``width`` numbers to ``length`` of them, cutting it off
takes them back; both keep amplitudes, so a constant stays what it is. The matrices follow from
the cosines of the two discrete Fourier transforms; the way back is rounded to multiples of 2^-24,
which makes its products with small whole numbers exact in fp64, whatever the order of their sums.
Source: related-systems.md 1 and 18 (SDQ-LLM, arXiv 2510.03275).
"""

import math
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

STEPS: Final = 1 << 24
"""Steps of one, to which the way back is rounded."""


@lru_cache(maxsize=64)
def upsampling(width: int, length: int) -> Tensor:
    """Build f64[width, length]: ``x @ upsampling`` has its spectrum padded with zeros.

    Raises:
        ValueError: If ``length`` is below ``width``, or ``width`` below 1.
    """
    factors = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
    factors[0] = 1
    if length == width and width % 2 == 0:
        factors[-1] = 1
    return _cosines(width, length, factors).T.contiguous() / width


@lru_cache(maxsize=64)
def downsampling(width: int, length: int) -> Tensor:
    """Build f64[length, width]: ``y @ downsampling`` has its spectrum cut off, a left inverse.

    Entries are multiples of 2^-24, each column adds up to exactly 1.

    Raises:
        ValueError: If ``length`` is below ``width``, or ``width`` below 1.
    """
    factors = torch.full((width // 2 + 1,), 2.0, dtype=torch.float64)
    factors[0] = 1
    if width % 2 == 0:
        factors[-1] = 1
    steps = (_cosines(width, length, factors) * (STEPS / length)).round()
    # Rounding moves the sum of a column by some steps; its largest entry takes them back.
    largest = steps.abs().argmax(dim=0, keepdim=True)
    missing = STEPS - steps.sum(dim=0, keepdim=True)
    return steps.scatter_add(0, largest, missing) / STEPS


def _cosines(width: int, length: int, factors: Tensor) -> Tensor:
    """Sum factors_k cos(2 pi k (l / length - n / width)) over k: f64[length, width]."""
    if not 1 <= width <= length:
        raise ValueError(f"{width} columns cannot be resampled to {length}")
    # The angle as a fraction of a turn, reduced in whole numbers, so that cos sees small arguments.
    turn = width * length
    shift = torch.arange(length)[:, None] * width - torch.arange(width) * length
    total = torch.zeros(length, width, dtype=torch.float64)
    for k, factor in enumerate(factors.tolist()):
        total += factor * torch.cos((k * shift % turn).double() * (2 * math.pi / turn))
    return total
