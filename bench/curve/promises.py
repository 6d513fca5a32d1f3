"""What is promised of our points against the libraries of the same run, computed and judged."""

from collections.abc import Iterator
from dataclasses import dataclass

from bench.quality.targets import Target
from qdc.comparing.statistics import Ratio

from .judgement import Found, Point, point_of

UP_TO = 2.35
"""Effective bits of the libraries that points of about two bits are held against."""


@dataclass(frozen=True)
class Promise:
    """One of our points, and at most which share of another's gap it may have."""

    name: str
    share: float
    other: str = ""
    """A library's point; empty for the best of no fewer bits, up to ``UP_TO``."""


MASKED = (
    Promise("best", 0.45),
    Promise("default", 0.6),
    Promise("small", 0.8, "AutoRound 2 bits g128"),
)
CAUSAL = (Promise("rates 2", 0.45), Promise("rates 2.2", 0.45), Promise("default", 0.6))


def targets(ours: Found, theirs: Found, ratio: Ratio) -> Iterator[Target]:
    """Every promise, met or not, or not measured."""
    for promise in CAUSAL if ratio is None else MASKED:
        yield _target(promise, ours, theirs, ratio)


def _target(promise: Promise, ours: Found, theirs: Found, ratio: Ratio) -> Target:
    what = promise.other or f"the best library of no fewer bits up to {UP_TO:g}"
    text = f"gap of `{promise.name}` at most {promise.share:g} x that of {what}"
    if promise.name not in ours:
        return Target(text, "", None)
    mine = point_of(promise.name, ours[promise.name], ratio)
    points = [point_of(name, results, ratio) for name, results in theirs.items()]
    other = min(
        (point for point in points if _counts(point, promise, mine)),
        key=lambda point: point.gap,
        default=None,
    )
    if other is None:
        return Target(text, "", None)
    measured = (
        f"{mine.gap:.4f} at {mine.bits:.3f} bits, {other.gap:.4f} of {other.name} at "
        f"{other.bits:.3f}: {mine.gap / other.gap:.2f}"
    )
    return Target(text, measured, mine.gap <= promise.share * other.gap)


def _counts(point: Point, promise: Promise, mine: Point) -> bool:
    if promise.other:
        return point.name == promise.other
    return mine.bits <= point.bits <= UP_TO
