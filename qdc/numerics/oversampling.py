"""How often each layer is sampled, by the spread of its weights: MultiOSR.

Source: related-systems.md 1 (SDQ-LLM, arXiv 2510.03275). The ratio of a region is ``base`` plus
its share of what the target leaves, by 1 / deviation^a over the regions; that of a layer by
1 / deviation^a' inside its region, so that the mean weighted by size is the region's. Published
is rounding to a grid at both steps, whose mean may miss the target either way. ``strict`` rounds
once, by largest remainders under the target.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

LEAST: Final = 1.0
"""Ratio below which codes could not tell all columns."""

Ratios = NDArray[np.float64]


class Spread(NamedTuple):
    """One region's layers.

    Attributes:
        deviations: f64[layers], standard deviation of each layer's weights.
        sizes: f64[layers], weights of each.
    """

    deviations: Ratios
    sizes: Ratios

    @property
    def deviation(self) -> float:
        """Of all weights of the region, their means counted as 0."""
        return float(np.sqrt(np.average(self.deviations**2, weights=self.sizes)))


def allocate_ratios(
    regions: Sequence[Spread], target: float, grid: float, highest: float, *, strict: bool
) -> list[Ratios]:
    """Give each layer of each region its ratio.

    Args:
        regions: At least one, each with at least one layer.
        target: Mean ratio, 1 to ``highest``.
        grid: Ratios are multiples of this.
        highest: No layer gets more.
        strict: Keep the mean, weighted by size, at or below the target.

    Returns:
        f64[layers] for each region.
    """
    base = LEAST if target <= 2 else 0.75 * target
    shares = inverse_powers([region.deviation for region in regions], 2 if target <= 4 else 1.5)
    means = base + shares / shares.sum() * (target - base) * len(regions)
    if not strict:
        means = on_grid(means, grid, highest)
        means = on_grid(means * (target / means.mean()), grid, highest)
    found = []
    for region, mean in zip(regions, means.tolist(), strict=True):
        inside = inverse_powers(region.deviations, 1.5 if mean < 3.5 else 0.1)
        weighted = np.average(inside, weights=region.sizes)
        found.append(base + (mean - base) / weighted * inside)
    if not strict:
        return [on_grid(ratios, grid, highest) for ratios in found]
    sizes = np.concatenate([region.sizes for region in regions])
    flat = largest_remainders(np.concatenate(found), sizes, target, grid, highest)
    return np.split(flat, np.cumsum([len(region.sizes) for region in regions])[:-1])


def inverse_powers(deviations: Sequence[float] | Ratios, power: float) -> Ratios:
    """Weights 1 / deviation^power, as shares of the largest; 0 counts as a thousandth of most."""
    found = np.asarray(deviations, dtype=np.float64)
    most = found.max()
    if most == 0:
        return np.ones_like(found)
    weights: Ratios = np.maximum(found / most, 1e-3) ** -power
    shares: Ratios = weights / weights.max()
    return shares


def on_grid(ratios: Ratios, grid: float, highest: float) -> Ratios:
    """The nearest multiples of the grid in the range; halves go up."""
    nearest: Ratios = np.floor(ratios / grid + 0.5) * grid
    return np.clip(nearest, LEAST, highest)


def largest_remainders(
    wanted: Ratios, sizes: Ratios, target: float, grid: float, highest: float
) -> Ratios:
    """Round down to the grid, then up where most is missing as long as the mean allows it."""
    steps = np.floor((np.clip(wanted, LEAST, highest) - LEAST) / grid + 1e-9)
    most = np.floor((highest - LEAST) / grid + 1e-9)
    budget = (target - LEAST) / grid * sizes.sum() * (1 + 1e-12)
    surplus = steps - (wanted - LEAST) / grid
    while (steps * sizes).sum() > budget:
        # Ratios that were raised to the least one are paid for by the largest.
        steps[int(np.argmax(steps))] -= 1
    left = budget - (steps * sizes).sum()
    order = np.argsort(surplus, kind="stable").tolist()
    while order:
        # A second turn is for what layers at the highest ratio have left over.
        order = [place for place in order if steps[place] < most and sizes[place] <= left]
        for place in order:
            if sizes[place] <= left:
                steps[place] += 1
                left -= sizes[place]
    ratios: Ratios = LEAST + steps * grid
    return ratios
