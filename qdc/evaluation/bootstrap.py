"""How sure a mean over documents is: standard errors and intervals that keep documents whole.

What is measured in one document is alike, so documents are the observations: they are drawn with
replacement, and every sum of a document comes along. A difference of two models on the same masks
is one number a document, so its interval is that of paired differences. Source: the nonparametric
bootstrap (percentile intervals), and the linearised variance of a ratio of two sums.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from qdc.numerics.random_numbers import uniforms

Interval = tuple[float, float]
"""The ends of a 95% interval."""
RESAMPLES, LEVEL = 2000, 0.95
PIECE = 1 << 20
"""Most draws held at a time."""


def by_group(values: Tensor, groups: Tensor | None) -> Tensor:
    """Add up ``[n]`` within the groups ``i64[n]``, of any numbers: ``f64[groups]``.

    Without groups every value stands for itself.
    """
    if groups is None:
        return values.double()
    places = torch.unique(groups, return_inverse=True)[1]
    count = int(places.max()) + 1
    return torch.zeros(count, dtype=torch.float64).index_add_(0, places, values.double())


def interval(sums: Tensor, weights: Tensor, groups: Tensor | None = None) -> Interval | None:
    """95% interval of ``sums.sum() / weights.sum()``, both ``[n]``, resampled by group ``i64[n]``.

    Every call of as many groups draws the same ones. ``None`` where there are fewer than two
    groups. A resample of no weight at all is left out.
    """
    total, weight = by_group(sums, groups), by_group(weights, groups)
    if len(total) < 2:
        return None
    drawn = torch.cat([_means(total, weight, places) for places in _resamples(len(total))])
    found = drawn[~drawn.isnan()].quantile(
        torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)
    )
    return float(found[0]), float(found[1])


def standard_error(sums: Tensor, weights: Tensor, groups: Tensor | None = None) -> float | None:
    """Linearised standard error of ``sums.sum() / weights.sum()``; arguments as ``interval``."""
    total, weight = by_group(sums, groups), by_group(weights, groups)
    count = len(total)
    if count < 2:
        return None
    residual = total - total.sum() / weight.sum() * weight
    variance = residual.square().sum() * count / (count - 1) / weight.sum().square()
    return float(variance.sqrt())


def _means(total: Tensor, weight: Tensor, places: Tensor) -> Tensor:
    return total[places].sum(1) / weight[places].sum(1)


def _resamples(count: int) -> Iterator[Tensor]:
    """Yield ``i64[resamples, count]`` piece by piece: places drawn with replacement."""
    step = max(1, min(RESAMPLES, PIECE // count))
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        draws = uniforms(rows * count, "bootstrap", count, start).view(rows, count).double()
        yield (draws * count).long().clamp(max=count - 1)
