"""Means over seeds, errors and intervals over documents, differences in pairs."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.comparing.result import Losses, Result
from qdc.evaluation.bootstrap import Interval, interval, standard_error
from qdc.evaluation.evaluate import groups_of

MIDDLE = 0.5
"""The mask ratio of the gap."""
Ratio = float | None
"""A mask ratio; None for the next-token loss of a causal model."""


class Spread(NamedTuple):
    """A mean and the standard deviation of one value; NaN where there is but one."""

    mean: float
    deviation: float
    seeds: int


class Rise(NamedTuple):
    """Rise of the loss of a token over the original, in nats."""

    mean: float
    error: float
    """Standard error over documents, or windows where documents are not known; each, with all its
    masks, is one observation."""
    interval: Interval | None = None
    """95%, from resampled documents."""


class Share(NamedTuple):
    """A mean over tokens, as of agreement, with its 95% interval."""

    mean: float
    interval: Interval | None


def spread(values: Sequence[float]) -> Spread:
    """Mean and sample standard deviation of at least one value."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def rise(result: Result, ratio: Ratio = MIDDLE) -> Rise:
    """How much worse than the original one result predicts."""
    return difference([result], None, ratio)


def gap(results: Sequence[Result], ratio: Ratio = MIDDLE) -> Spread:
    """The rise over seeds."""
    return spread([_mean_rise(result, ratio) for result in results])


def window_error(results: Sequence[Result], ratio: Ratio = MIDDLE) -> float:
    """Standard error over documents of the rise that is a mean over seeds."""
    return difference(results, None, ratio).error


def difference(
    results: Sequence[Result], others: Sequence[Result] | None, ratio: Ratio = MIDDLE
) -> Rise:
    """Rise of one method over another, or over the original for None, window by window.

    Both saw the same windows under the same masks, so what is hard about a window cancels out.
    """
    mine = [at(r.candidate, ratio) for r in results]
    found = _mean([part.losses for part in mine])
    there = (
        [at(r.original, ratio) for r in results]
        if others is None
        else [at(r.candidate, ratio) for r in others]
    )
    due = _mean([part.losses for part in there])
    tokens = there[0].tokens
    if tokens != mine[0].tokens:
        raise ValueError("the two were measured on different masks")
    return _rise(found - due, tokens, results[0].owners)


def quotient(results: Sequence[Result], others: Sequence[Result]) -> Spread:
    """Ratio of the mean gaps; its deviation is that of the seeds' own ratios, taken in pairs."""
    mean = gap(results).mean / gap(others).mean
    theirs = {r.seed: _mean_rise(r, MIDDLE) for r in others}
    pairs = [_mean_rise(r, MIDDLE) / theirs[r.seed] for r in results if r.seed in theirs]
    return Spread(mean, spread(pairs).deviation if pairs else math.nan, len(pairs))


def agreement(results: Sequence[Result]) -> tuple[Share, Share] | None:
    """Share of equal most probable tokens, and KL(original || candidate), as means over seeds.

    They are of the one ratio at which agreement was measured; None if it was not.
    """
    parts = [next((p for p in r.candidate if p.agreed), None) for r in results]
    known = [part for part in parts if part is not None]
    if len(known) < len(results):
        return None
    owners, tokens = results[0].owners, known[0].tokens
    weights, groups = _weights(tokens), _groups(owners)
    shares = []
    for values in ([p.agreed for p in known], [p.divergences for p in known]):
        sums = _mean(values)
        shares.append(Share(float(sums.sum()) / sum(tokens), interval(sums, weights, groups)))
    return shares[0], shares[1]


def loss(part: Losses, owners: Sequence[int]) -> Share:
    """Mean loss of a token, with its interval."""
    sums, weights = torch.tensor(part.losses, dtype=torch.float64), _weights(part.tokens)
    ends = interval(sums, weights, _groups(owners))
    return Share(float(sums.sum()) / sum(part.tokens), ends)


def at(losses: Sequence[Losses], ratio: Ratio) -> Losses:
    """The losses at one ratio."""
    return next(found for found in losses if found.ratio == ratio)


def _mean_rise(result: Result, ratio: Ratio) -> float:
    found, due = at(result.candidate, ratio), at(result.original, ratio)
    return sum(a - b for a, b in zip(found.losses, due.losses, strict=True)) / sum(due.tokens)


def _mean(values: Sequence[Sequence[float]]) -> Tensor:
    """Mean over seeds of what there is of each window."""
    return torch.tensor([list(each) for each in values], dtype=torch.float64).mean(0)


def _weights(tokens: Sequence[int]) -> Tensor:
    return torch.tensor(tokens, dtype=torch.float64)


def _groups(owners: Sequence[int]) -> Tensor | None:
    return groups_of(torch.tensor(owners)) if owners else None


def _rise(rises: Tensor, tokens: Sequence[int], owners: Sequence[int]) -> Rise:
    """Mean per token, its standard error and its interval."""
    weights, groups = _weights(tokens), _groups(owners)
    error = standard_error(rises, weights, groups)
    ends = interval(rises, weights, groups)
    return Rise(float(rises.sum()) / sum(tokens), math.nan if error is None else error, ends)
