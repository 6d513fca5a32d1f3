"""Correlations of values and of ranks, one pair of series or many at once."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]


def correlations(x: Numbers, y: Numbers) -> Numbers:
    """Pearson's correlation row by row, ``f64[rows, n]`` twice to ``f64[rows]``.

    Not a number where a row is constant.
    """
    x, y = (part - part.mean(1, keepdims=True) for part in (x, y))
    size = np.sqrt((x**2).sum(1) * (y**2).sum(1))
    with np.errstate(invalid="ignore"):
        found: Numbers = (x * y).sum(1) / size
    return found


def ranks(values: Numbers) -> Numbers:
    """Rank within each row of ``f64[rows, n]``; equal values share their mean rank."""
    this, other = values[:, :, None], values[:, None, :]
    found: Numbers = (this > other).sum(2) + ((this == other).sum(2) + 1) / 2
    return found


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation of two series; not a number if one is constant."""
    return float(correlations(_row(x), _row(y))[0])


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Correlation of the ranks of two series."""
    return pearson(ranks(_row(x))[0], ranks(_row(y))[0])


def _row(values: Any) -> Numbers:
    return np.asarray(values, dtype=np.float64)[None]
