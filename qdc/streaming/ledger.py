"""Bytes that a run would hold at a time, and what they were at the highest point."""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from qdc.ir.types import Frozen

Place = Literal["host", "device"]


class Peak(Frozen):
    """The highest point of one memory."""

    nbytes: int = 0
    moment: str = ""
    """What ran then."""
    parts: dict[str, int] = Field(default_factory=dict)
    """What the bytes were, largest first."""


class Ledger:
    """Named amounts in host and device memory; on the CPU they are one."""

    def __init__(self, *, shared: bool, limits: Mapping[str, int] | None = None) -> None:
        """Start empty.

        Args:
            shared: whether the device has no memory of its own.
            limits: bytes of a kind that stay in host memory; what is above waits on the disk.
        """
        self.shared, self.limits = shared, limits or {}
        self.on_disk = 0
        """Most bytes that wait there at a time."""
        self.moment = "start"
        """What runs now; callers set it."""
        self._held: dict[str, tuple[Place, str, int]] = {}
        self._sums: Counter[tuple[Place, str]] = Counter()
        """Of all that is held: a block of many experts holds thousands of things."""
        self._peaks: dict[Place, Peak] = {}

    def hold(self, name: str, kind: str, nbytes: int, place: Place = "host") -> None:
        """Hold bytes under a name, in place of what it stood for; ``kind`` groups them."""
        self.release(name)
        where: Place = "host" if self.shared else place
        self._held[name] = (where, kind, nbytes)
        self._sums[where, kind] += nbytes
        self._look(Counter())

    def __contains__(self, name: object) -> bool:
        """Whether something is held under this name."""
        return name in self._held

    def release(self, name: str) -> int:
        """Forget a name; what it held, 0 if nothing."""
        place, kind, nbytes = self._held.pop(name, ("host", "", 0))
        self._sums[place, kind] -= nbytes
        return nbytes

    def release_all(self, start: str) -> int:
        """Forget every name that begins so; the bytes that they held."""
        names = [name for name in self._held if name.startswith(start)]
        return sum(self.release(name) for name in names)

    def held(self, *kinds: str) -> int:
        """Bytes of these kinds that are held now, wherever."""
        return sum(nbytes for (_, kind), nbytes in self._sums.items() if kind in kinds)

    def work(self, kind: str, nbytes: int, place: Place = "device") -> None:
        """Bytes that are in memory for a moment beside all that is held."""
        self._look(Counter({("host" if self.shared else place, kind): nbytes}))

    def peak(self, place: Place) -> Peak:
        """The highest point so far."""
        return self._peaks.get(place, Peak())

    def _look(self, passing: Counter[tuple[Place, str]]) -> None:
        now = Counter(self._sums)
        now.update(passing)
        for kind, limit in self.limits.items():
            above = max(0, now["host", kind] - limit)
            now["host", kind] -= above
            self.on_disk = max(self.on_disk, above)
        for place in ("host", "device"):
            parts = {kind: n for (where, kind), n in now.most_common() if where == place and n}
            total = sum(parts.values())
            if total > self.peak(place).nbytes:
                self._peaks[place] = Peak(nbytes=total, moment=self.moment, parts=parts)
