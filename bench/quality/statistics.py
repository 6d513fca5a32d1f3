"""Means over seeds, standard errors over windows, differences in pairs."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch

from qdc.evaluation.bootstrap import standard_error

from .result import Losses, Result

MIDDLE = 0.5
"""The mask ratio of the gap."""


class Spread(NamedTuple):
    """A mean and the standard deviation of one value; NaN where there is but one."""

    mean: float
    deviation: float
    seeds: int


class Rise(NamedTuple):
    """Rise of the loss of a masked token over the original, in nats."""

    mean: float
    error: float
    """Standard error over windows; each, with all its masks, is one observation."""


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def rise(result: Result, ratio: float = MIDDLE) -> Rise:
    """How much worse than the original one result predicts."""
    found, due = _at(result.candidate, ratio), _at(result.original, ratio)
    return _rise([a - b for a, b in zip(found.losses, due.losses, strict=True)], due.tokens)


def gap(results: Sequence[Result], ratio: float = MIDDLE) -> Spread:
    """The rise over seeds."""
    return spread([rise(result, ratio).mean for result in results])


def window_error(results: Sequence[Result], ratio: float = MIDDLE) -> float:
    """Standard error over windows of the rise that is a mean over seeds."""
    return difference(results, None, ratio).error


def difference(
    results: Sequence[Result], others: Sequence[Result] | None, ratio: float = MIDDLE
) -> Rise:
    """Rise of one method over another, or over the original for None, window by window.

    Both saw the same windows under the same masks, so what is hard about a window cancels out.
    """
    found = _mean_losses([_at(r.candidate, ratio) for r in results])
    there = (
        [_at(r.original, ratio) for r in results]
        if others is None
        else [_at(r.candidate, ratio) for r in others]
    )
    due = _mean_losses(there)
    tokens = there[0].tokens
    if tokens != _at(results[0].candidate, ratio).tokens:
        raise ValueError("the two were measured on different masks")
    return _rise([a - b for a, b in zip(found, due, strict=True)], tokens)


def quotient(results: Sequence[Result], others: Sequence[Result]) -> Spread:
    """Ratio of the mean gaps; its deviation is that of the seeds' own ratios, taken in pairs."""
    mean = gap(results).mean / gap(others).mean
    theirs = {r.seed: rise(r).mean for r in others}
    pairs = [rise(r).mean / theirs[r.seed] for r in results if r.seed in theirs]
    return Spread(mean, spread(pairs).deviation if pairs else math.nan, len(pairs))


def _at(losses: Sequence[Losses], ratio: float) -> Losses:
    return next(found for found in losses if found.ratio == ratio)


def _mean_losses(losses: Sequence[Losses]) -> list[float]:
    return [
        statistics.fmean(window) for window in zip(*(part.losses for part in losses), strict=True)
    ]


def _rise(rises: Sequence[float], tokens: Sequence[int]) -> Rise:
    """Mean per token and its standard error."""
    sums, counts = (torch.tensor(part, dtype=torch.float64) for part in (rises, tokens))
    error = standard_error(sums, counts)
    return Rise(sum(rises) / sum(tokens), math.nan if error is None else error)
