"""What errors of layers are expected to cost that no prediction of the calibration hung on."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def unseen_as_usual(costs: Floats, weights: NDArray[np.int64]) -> Floats:
    """Let layers that no prediction hung on cost what a weight of the others does in the mean.

    Experts that no token of the calibration was routed to matter to other text.

    Args:
        costs: f64[layers, rates].
        weights: i64[layers], their number.
    """
    unseen: NDArray[np.bool_] = np.all(costs == 0, axis=1)
    if unseen.all():
        return costs
    seen = np.flatnonzero(~unseen)
    usual = costs[seen].sum(0) / weights[seen].sum()
    found: Floats = np.where(unseen[:, None], weights[:, None] * usual, costs)
    return found
