"""How well one number predicts another over a population, with bootstrap intervals."""

from dataclasses import dataclass

import numpy as np

from bench.common.statistics import Numbers, correlations, pearson, ranks, spearman

DRAWS = 2000


@dataclass(frozen=True)
class Prediction:
    """How an objective predicts the rise of the held-out loss.

    ``rank`` is Spearman's correlation, ``line`` Pearson's of the logarithms, each followed by the
    ends of its 90 % interval. ``factor`` is by how much a straight line through the logarithms
    typically misses: 1.2 means 20 %. ``line`` and ``factor`` are None if a value is not positive.
    """

    count: int
    rank: tuple[float, float, float]
    line: tuple[float, float, float] | None
    factor: float | None


def predict(objective: Numbers, rise: Numbers, seed: int = 0) -> Prediction:
    """Judge ``objective``, ``f64[versions]``, against ``rise`` of the same versions."""
    drawn = np.random.default_rng(seed).integers(len(rise), size=(DRAWS, len(rise)))
    rank = _interval(
        spearman(objective, rise),
        correlations(ranks(objective[drawn]), ranks(rise[drawn])),
    )
    if (objective <= 0).any() or (rise <= 0).any():
        return Prediction(len(rise), rank, None, None)
    x, y = np.log(objective), np.log(rise)
    line = _interval(pearson(x, y), correlations(x[drawn], y[drawn]))
    slope, offset = np.polyfit(x, y, 1)
    missed = y - slope * x - offset
    factor = float(np.exp(np.sqrt((missed**2).sum() / max(1, len(y) - 2))))
    return Prediction(len(rise), rank, line, factor)


def _interval(value: float, drawn: Numbers) -> tuple[float, float, float]:
    low, high = np.nanquantile(drawn, [0.05, 0.95])
    return value, float(low), float(high)
