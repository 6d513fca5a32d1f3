"""Which part of a block an element belongs to: whole columns, magnitude classes, single elements.

A partition gives each element of a block the number of its part; each part has levels of its own.
BiLLM and ARB-LLM cut by columns (``salient_columns``) and then by magnitude (``magnitude_split``),
PB-LLM by elements (``element_quantile``). Source: related-systems.md 7, 9, 12, 18, B6; arXiv
2402.04291, 2410.03129, 2310.00034.
"""

from collections.abc import Callable

import torch
from torch import Tensor

CONCENTRATED, SPARSE, SALIENT, SALIENT_SPARSE = range(4)
"""Parts of a block that is cut by columns and magnitude."""
LOWEST, HIGHEST = 0.1, 0.9
"""Percentiles between which a split into two magnitude classes is sought."""
SEARCH_ORDER = 2
"""Order in which the search for salient columns binarises both sides."""

Trial = Callable[[Tensor, Tensor, int], Tensor]
"""``(values f32[n, g], mask f32[n, g] of 0 and 1, order)`` to the squared error of a quick fit."""


def salient_columns(scores: Tensor, values: Tensor, most: int, trial: Trial) -> Tensor:
    """Choose the columns that get a second bit: the best number of those that score highest.

    Every number from 1 to ``most`` is tried, and leaves one column at least on the other side.

    Args:
        scores: f32[g], how salient each column is; equal ones from the left.
        values: f32[n, g], what the two sides are fitted to.
        most: Largest number of salient columns; 0 for none.
        trial: Gives the error of a side.

    Returns:
        bool[g]; none is set where there is a single column.
    """
    width = values.shape[1]
    chosen = torch.zeros(width, dtype=torch.bool, device=values.device)
    most = min(most, width - 1)
    if most < 1:
        return chosen
    falling = scores.argsort(descending=True, stable=True)
    sorted_values, ones = values[:, falling], torch.ones_like(values)
    errors = [
        trial(sorted_values[:, :k], ones[:, :k], SEARCH_ORDER)
        + trial(sorted_values[:, k:], ones[:, k:], SEARCH_ORDER)
        for k in range(1, most + 1)
    ]
    best = int(torch.stack(errors).argmin()) + 1
    chosen[falling[:best]] = True
    return chosen


def magnitude_split(
    magnitude: Tensor, values: Tensor, splits: int, order: int, trial: Trial, zeros: int = 0
) -> Tensor:
    """Split elements in two classes at the best of some percentiles of their magnitude.

    Args:
        magnitude: f32[n, g], not negative.
        values: f32[n, g], what the two classes are fitted to.
        splits: Percentiles that are tried, evenly from the 10th to the 90th; 0 for no split.
        order: In which each class is fitted.
        trial: Gives the error of a class.
        zeros: So many zeros count among the magnitudes when percentiles are taken.

    Returns:
        bool[n, g]: whether an element is of the class of large ones.
    """
    if not splits or not magnitude.numel():
        return torch.zeros_like(magnitude, dtype=torch.bool)
    thresholds = _percentiles(magnitude, splits, zeros)
    errors = []
    for threshold in thresholds:
        large = (magnitude >= threshold).to(values.dtype)
        errors.append(trial(values, large, order) + trial(values, 1 - large, order))
    return magnitude >= thresholds[torch.stack(errors).argmin()]


def element_quantile(scores: Tensor, count: int) -> Tensor:
    """Mark exactly so many elements of highest score; of equal ones the first, row by row.

    Args:
        scores: f32[n, g].
        count: 0 to n g.

    Returns:
        bool[n, g].

    Raises:
        ValueError: If ``count`` is out of range.
    """
    flat = scores.flatten()
    if not 0 <= count <= len(flat):
        raise ValueError(f"cannot mark {count} of {len(flat)} elements")
    if not count:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = flat.kthvalue(len(flat) - count + 1).values
    marked = flat > threshold
    ties = (flat == threshold).nonzero().flatten()
    marked[ties[: count - int(marked.sum())]] = True
    return marked.reshape(scores.shape)


def column_partition(salient: Tensor, large: Tensor, *, salient_classes: bool) -> Tensor:
    """The part of each element of a block that is cut by columns and magnitude.

    Args:
        salient: bool[g].
        large: bool[n, g].
        salient_classes: Whether elements of salient columns have a class too.

    Returns:
        u8[n, g]: ``CONCENTRATED``, ``SPARSE``, ``SALIENT`` or ``SALIENT_SPARSE``.
    """
    classes = large.to(torch.uint8)
    of_salient = SALIENT + (classes if salient_classes else torch.zeros_like(classes))
    return torch.where(salient, of_salient, classes)


def _percentiles(magnitude: Tensor, splits: int, zeros: int) -> Tensor:
    """f32[splits]: percentiles with linear interpolation, as if ``zeros`` zeros were among them."""
    ordered = magnitude.flatten().sort().values
    shares = torch.linspace(LOWEST, HIGHEST, splits, dtype=torch.float64, device=magnitude.device)
    place = (shares * (len(ordered) + zeros - 1) - zeros).clamp(min=-1)
    below = place.floor().long()
    padded = torch.cat([ordered.new_zeros(1), ordered, ordered[-1:]])
    part = (place - below).to(ordered.dtype)
    return torch.lerp(padded[below + 1], padded[below + 2], part)
