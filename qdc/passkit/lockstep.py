"""Go through several iterators at once and hold nothing of what they gave."""

from collections.abc import Iterator
from typing import TypeVar

Given = TypeVar("Given")


def lockstep(*parts: Iterator[Given]) -> Iterator[tuple[Given, ...]]:
    """Yield what all of them give next, as ``zip`` does until the first one ends.

    ``zip`` holds its last tuple while the next one is made, so two batches would be in memory.
    """
    yield from map(lambda *each: each, *parts)
