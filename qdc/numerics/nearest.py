"""The nearest of a few levels, each weight with levels of its own.

A reduction along a short dimension is slow: ``argmin`` over four levels of a thousand weights takes
four times as long as comparing pairs of rows, which this does. Of equally near levels the first is
taken, as ``argmin`` takes it.
"""

import torch
from torch import Tensor


def nearest_levels(levels: Tensor, target: Tensor) -> Tensor:
    """Round numbers to their nearest levels.

    Args:
        levels: f32[levels, n].
        target: f32[n].

    Returns:
        f32[n].
    """
    distance = (levels - target).abs_()
    while len(levels) > 1:
        near, far = _pairs(distance)
        first, second = _pairs(levels)
        left = len(levels) // 2 * 2
        levels = _with(torch.where(near <= far, first, second), levels[left:])
        if len(levels) > 1:
            distance = _with(torch.minimum(near, far), distance[left:])
    return levels[0]


def nearest_places(distance: Tensor) -> Tensor:
    """Which of a few distances is the least: f32[choices, ...] -> u8[...]; at most 256 choices."""
    shape = (-1, *[1] * (distance.ndim - 1))
    place = torch.arange(len(distance), dtype=torch.uint8, device=distance.device).view(shape)
    place = place.expand(distance.shape)
    while len(distance) > 1:
        near, far = _pairs(distance)
        first, second = _pairs(place)
        left = len(distance) // 2 * 2
        # Places ascend, and the second is taken for being nearer: it is the larger of the two.
        taken = torch.maximum(first, second * (far < near).view(torch.uint8))
        place = _with(taken, place[left:])
        distance = _with(torch.minimum(near, far), distance[left:])
    return place[0]


def _pairs(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows 0, 2, ... and 1, 3, ..., without the one that has no partner."""
    even = len(rows) // 2 * 2
    return rows[:even:2], rows[1:even:2]


def _with(rows: Tensor, odd: Tensor) -> Tensor:
    """Rows and those without a partner; nothing is copied where there are none."""
    return torch.cat([rows, odd]) if len(odd) else rows
