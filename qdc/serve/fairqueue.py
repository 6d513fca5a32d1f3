"""Lines of several clients, of which none waits for another's whole line.

Within a line the order is that in which items came; between lines it is one item each, in turns.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Items by client. Whoever was served goes behind all others that wait."""

    def __init__(self) -> None:
        """Begin without an item."""
        self._lines: dict[str, deque[Item]] = {}  # the first is the next to be served
        self._last: str | None = None

    def __len__(self) -> int:
        """Items of all clients."""
        return sum(map(len, self._lines.values()))

    def __iter__(self) -> Iterator[Item]:
        """All items, client by client."""
        for line in self._lines.values():
            yield from line

    @property
    def clients(self) -> int:
        """Clients that have an item here."""
        return len(self._lines)

    def count(self, client: str) -> int:
        """Items of one client."""
        return len(self._lines.get(client, ()))

    def push(self, client: str, item: Item) -> None:
        """Put an item at the end of its client's line."""
        self._lines.setdefault(client, deque()).append(item)

    def keep(self, wanted: Callable[[Item], bool]) -> None:
        """Drop every item that is not ``wanted``."""
        left = {name: deque(filter(wanted, line)) for name, line in self._lines.items()}
        self._lines = {name: line for name, line in left.items() if line}

    def take(self, most: int, alike: Callable[[Item, Item], bool]) -> list[Item]:
        """Take the next item, and up to ``most`` in all that are ``alike`` to it.

        Its company is found in turns as well, one item of each client after the other, so that a
        long line fills no more of a batch than others leave. Gives nothing if nothing waits.
        """
        if not self._lines:
            return []
        if self._last in self._lines:  # it came again before the others had their turn
            self._lines[self._last] = self._lines.pop(self._last)
        served, *others = self._lines
        self._last = served
        first = self._lines[served].popleft()
        turns, taken = [*others, served], [first]
        fitting = {
            name: deque(item for item in self._lines[name] if alike(first, item)) for name in turns
        }
        while len(taken) < most and any(fitting.values()):
            for name in turns:
                if fitting[name] and len(taken) < most:
                    taken.append(fitting[name].popleft())
        gone = set(map(id, taken))
        left = {name: deque(i for i in self._lines[name] if id(i) not in gone) for name in turns}
        self._lines = {name: line for name, line in left.items() if line}
        return taken

    def clear(self) -> list[Item]:
        """Take all."""
        found = list(self)
        self._lines = {}
        return found
