"""Weights too small for the fp16 scales that they are stored with: they decode to nothing."""

from collections.abc import Sequence

import torch
from torch import Tensor

NORMAL = 2.0**-14
"""Smallest number of full precision in fp16; at 2^-24 there is nothing left."""
NOTABLE = 1e-3
"""Share of the largest weight of a layer below which a block is nothing beside the others."""


def may_vanish(weight: Tensor) -> bool:
    """Whether any block that counts can be lost: cheap, and false for all but odd layers."""
    return 0 < _peak(weight) * NOTABLE < NORMAL


def vanished(weight: Tensor, dense: Tensor, parts: Sequence[slice]) -> list[int]:
    """Numbers of the blocks that underflow: a decoded zero would be no worse than what they hold.

    Args:
        weight: f32[n, m].
        dense: f32[n, m], quantized.
        parts: adjoining slices that cover the columns, one a block.

    Returns:
        The blocks whose weights are below ``NORMAL`` and not below ``NOTABLE`` of the layer's
        largest, and whose error is at least as large as they are.
    """
    least = NOTABLE * _peak(weight)
    found = []
    for number, part in enumerate(parts):
        block, decoded = weight[:, part].double(), dense[:, part].double()
        peak = _peak(block)
        lost = (decoded - block).square().sum() >= block.square().sum()
        if 0 < peak < NORMAL and peak >= least and bool(lost):
            found.append(number)
    return found


def _peak(weight: Tensor) -> float:
    low, high = torch.aminmax(weight)
    return max(-float(low), float(high))
