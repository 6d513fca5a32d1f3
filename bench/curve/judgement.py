"""Each point of others against our curve at its bits."""

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

from qdc.comparing.result import Result
from qdc.comparing.statistics import Ratio, Rise, Spread, difference, gap

LOW, HIGH = 1.25, 3.5
"""Effective bits between which a point is judged."""
SHARE = 2 / 3
"""Ours at most this share of theirs: theirs lies above by a third of its gap."""
NOISE = 2
"""Standard errors that count as noise."""
Found = Mapping[str, Sequence[Result]]
"""Results over seeds by name."""


class Point(NamedTuple):
    """A method on the plane: effective bits and gap, nats a token."""

    name: str
    bits: float
    gap: float


class Ours(NamedTuple):
    """Our curve at some bits."""

    gap: float
    between: tuple[str, ...]
    """The points that it is taken from."""


@dataclass(frozen=True)
class Verdict:
    """One point of others, judged."""

    point: Point
    spread: Spread
    ours: Ours | None
    """None where it has fewer bits than any of ours."""
    nearest: str
    """Of ours, the one of most bits among those of no more bits; empty if there is none."""
    apart: Rise | None
    """Their rise over that one, window by window."""

    @property
    def ratio(self) -> float:
        """Our gap as a share of theirs; not a number where theirs is none."""
        if self.ours is None or self.point.gap <= 0:
            return math.nan
        return self.ours.gap / self.point.gap

    @property
    def judged(self) -> bool:
        """Whether its bits are those that the promise is about."""
        return LOW <= self.point.bits <= HIGH

    @property
    def above(self) -> bool:
        """Whether it lies above our curve by at least a third of its gap."""
        return self.ratio <= SHARE

    @property
    def within_noise(self) -> bool:
        """Whether windows do not tell it from the nearest of ours."""
        return self.apart is not None and abs(self.apart.mean) <= NOISE * self.apart.error


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other has fewer bits than, or as many, and a lower gap; by bits."""
    found: list[Point] = []
    for point in sorted(points, key=lambda each: (each.bits, each.gap)):
        if not found or point.gap < found[-1].gap:
            found.append(point)
    return found


def curve_at(ours: Sequence[Point], bits: float) -> Ours | None:
    """Our curve at ``bits``: the front of our points, the logarithm of the gap linear in bits.

    Beyond the last point it stays level, for whoever has more bits can leave them unused. Before
    the first there is none. Between two points of which one has no gap it is linear itself.
    """
    points = front(ours)
    if not points or bits < points[0].bits:
        return None
    if bits >= points[-1].bits:
        return Ours(points[-1].gap, (points[-1].name,))
    after = next(n for n, point in enumerate(points) if point.bits > bits)
    low, high = points[after - 1], points[after]
    share = (bits - low.bits) / (high.bits - low.bits)
    if low.gap > 0 and high.gap > 0:
        value = low.gap * (high.gap / low.gap) ** share
    else:
        value = low.gap + share * (high.gap - low.gap)
    return Ours(value, (low.name, high.name) if share else (low.name,))


def point_of(name: str, results: Sequence[Result], ratio: Ratio) -> Point:
    """Mean bits and mean gap over seeds."""
    bits = sum(result.effective_bits for result in results) / len(results)
    return Point(name, bits, gap(results, ratio).mean)


def verdicts(ours: Found, theirs: Found, ratio: Ratio) -> list[Verdict]:
    """Every point of others, by bits; each against our curve of the seeds that it has.

    Args:
        ours: results of our points.
        theirs: results of the others.
        ratio: the mask ratio of the gap; None for the next-token loss.
    """
    found = [_verdict(name, results, ours, ratio) for name, results in theirs.items()]
    return sorted(found, key=lambda verdict: (verdict.point.bits, verdict.point.gap))


def _verdict(name: str, results: Sequence[Result], ours: Found, ratio: Ratio) -> Verdict:
    seeds = {result.seed for result in results if result.seed is not None}
    mine = {own: _of_seeds(each, seeds) for own, each in ours.items()}
    point = point_of(name, results, ratio)
    points = [point_of(own, each, ratio) for own, each in mine.items() if each]
    below = [each for each in front(points) if each.bits <= point.bits]
    nearest = below[-1].name if below else ""
    return Verdict(
        point,
        gap(results, ratio),
        curve_at(points, point.bits),
        nearest,
        difference(results, mine[nearest], ratio) if nearest else None,
    )


def _of_seeds(results: Sequence[Result], seeds: Set[int]) -> Sequence[Result]:
    """Those of the seeds, or all where no seed changes anything."""
    return [r for r in results if r.seed in seeds or r.seed is None] if seeds else results
