"""Which open places a step decides.

Every rule takes the confidence ``f64[rows, columns]``, minus infinity where nothing is open, the
open places ``bool[rows, columns]``, and gives the chosen ones ``bool[rows, columns]``. Of equally
confident places the left one goes first.
"""

import torch
from torch import Tensor


def ranks(confidence: Tensor) -> Tensor:
    """0 for the most confident column of each row, ``i64[rows, columns]``."""
    order = confidence.sort(dim=1, descending=True, stable=True).indices
    return order.argsort(dim=1)


def most_confident(confidence: Tensor, open_places: Tensor, quota: Tensor) -> Tensor:
    """The ``quota``, ``i64[rows]``, most confident places."""
    return open_places & (ranks(confidence) < quota[:, None])


def above(confidence: Tensor, open_places: Tensor, threshold: float) -> Tensor:
    """Places at least as confident as the threshold, and always the best one."""
    return open_places & ((confidence >= threshold) | (ranks(confidence) < 1))


def above_or_quota(
    confidence: Tensor, open_places: Tensor, threshold: float, quota: Tensor
) -> Tensor:
    """Places more confident than the threshold if they reach the quota, else the best ones."""
    sure = open_places & (confidence > threshold)
    enough = sure.sum(1) >= quota
    return torch.where(enough[:, None], sure, most_confident(confidence, open_places, quota))


def within_factor(confidence: Tensor, open_places: Tensor, factor: float) -> Tensor:
    """The best places up to the first n whose n-th best is below ``1 - factor / (n + 1)``.

    At least one, whatever its confidence. Where all but the last one pass, the last one goes with
    them, and so two places that are left always go together: the published loop counts so.
    """
    ordered = confidence.masked_fill(~open_places, -torch.inf).sort(dim=1, descending=True).values
    number = torch.arange(1, confidence.shape[1] + 1, dtype=torch.float64)
    passed = ordered >= 1 - factor / (number + 1)
    passed[:, 0] = True
    count = passed.sum(1)  # the bound rises with n, so nothing passes behind one that fails
    left = open_places.sum(1)
    return most_confident(confidence, open_places, torch.where(count == left - 1, left, count))


def leftmost(open_places: Tensor, quota: Tensor) -> Tensor:
    """The first ``quota``, ``i64[rows]``, open places."""
    return open_places & (open_places.cumsum(1) <= quota[:, None])


def below_chance(draws: Tensor, open_places: Tensor, chance: Tensor) -> Tensor:
    """Places whose draw, ``f64[rows, columns]``, is below the row's chance, ``f64[rows]``."""
    return open_places & (draws < chance[:, None])
