"""Go through several iterators at once and hold nothing of what they gave."""

from collections.abc import Iterator
from typing import Any

ENDED = object()


def lockstep(*parts: Iterator[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield what all of them give next, as ``zip`` does, until they end.

    ``zip`` holds its last tuple while the next one is made, so two batches would be in memory.

    Raises:
        ValueError: one ends before another.
    """
    while True:
        given = [tuple(next(part, ENDED) for part in parts)]
        ended = [each is ENDED for each in given[0]]
        if all(ended):
            return
        if any(ended):
            raise ValueError(f"of {len(parts)} iterators {sum(ended)} ended before the others")
        yield given.pop()
