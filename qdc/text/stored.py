"""Documents that stay in their files, and are read where they are drawn.

Their sizes are known, so a place in the whole text can be found without reading it. What was
looked through once must not change afterwards: a file that did is refused.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar, overload

import numpy as np

from qdc.errors import InvalidCalibration

Numbers = np.ndarray[tuple[int], np.dtype[np.int64]]
T = TypeVar("T")


class Stamp(NamedTuple):
    """A file as it was when it was looked through."""

    path: Path
    size: int
    modified: int

    @classmethod
    def of(cls, path: Path, handle: int) -> "Stamp":
        """Of a file that is open."""
        found = os.fstat(handle)
        return cls(path, found.st_size, found.st_mtime_ns)

    def read(self, start: int, count: int) -> bytes:
        """Read ``count`` bytes from ``start`` on. Raises InvalidCalibration if it has changed."""
        try:
            with self.path.open("rb", buffering=0) as file:
                if Stamp.of(self.path, file.fileno()) == self:
                    return os.pread(file.fileno(), count, start)
        except OSError as error:
            raise InvalidCalibration(
                f"the file cannot be read again: {(error.strerror or 'unknown reason').lower()}",
                where=[self.path.name],
                help="leave the text where it is until the samples are drawn",
            ) from error
        raise InvalidCalibration(
            "the file has changed since it was looked through",
            where=[self.path.name],
            help="run again when nobody writes to it",
        )


class Reading(Sequence[T], Generic[T]):
    """A sequence whose items are made when they are asked for; the last one is kept at hand."""

    def __init__(self, size: int, make: Callable[[int], T]) -> None:
        """``make`` gives the item of a place."""
        self.size, self.make = size, make
        self._last: tuple[int, T] | None = None

    def __len__(self) -> int:
        """The number of items."""
        return self.size

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """Make the items of a place."""
        if isinstance(place, slice):
            return [self[each] for each in range(self.size)[place]]
        place = range(self.size)[place]
        if self._last is None or self._last[0] != place:
            self._last = None  # two of them are never held
            self._last = (place, self.make(place))
        return self._last[1]


class Documents(Reading[str]):
    """Documents of known sizes, of which parts can be read.

    Sizes are in characters unless a subclass counts otherwise.
    """

    def __init__(self, ends: Numbers, characters: int, make: Callable[[int], str]) -> None:
        """Keep sizes.

        Args:
            ends: ``i64[documents]``, where each document ends if they stand one after the other.
            characters: of all documents.
            make: gives the document of a place.
        """
        super().__init__(len(ends), make)
        self.ends, self.characters = ends, characters

    @classmethod
    def held(cls, documents: Sequence[str]) -> "Documents":
        """Documents that are in memory."""
        sizes = np.fromiter(map(len, documents), np.int64, len(documents))
        return cls(np.cumsum(sizes), int(sizes.sum()), documents.__getitem__)

    def part(self, place: int, start: int, stop: int) -> str:
        """What stands between two places of a document; consecutive parts make it up."""
        return self[place][start:stop]


class LongText(Documents):
    """One document that is a whole file of UTF-8; its size is in bytes."""

    def __init__(self, stamp: Stamp, characters: int, mark: int) -> None:
        """Keep where it is.

        Args:
            stamp: of the file, which was found to be UTF-8.
            characters: in it.
            mark: bytes of the byte order mark at its beginning.
        """
        super().__init__(np.array([stamp.size - mark]), characters, self._whole)
        self.stamp, self.mark = stamp, mark

    def _whole(self, place: int) -> str:
        return self.part(place, 0, self.stamp.size)

    def part(self, place: int, start: int, stop: int) -> str:
        """As of any documents; a character belongs to the part in which it begins."""
        data = self.stamp.read(self.mark + start, max(0, stop - start) + 3)
        first = next((n for n, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), len(data))
        last = stop - start
        while last < len(data) and data[last] & 0xC0 == 0x80:
            last += 1
        return data[first:last].decode()


class Lines:
    """Lines of files, by place."""

    def __init__(self) -> None:
        """Begin without any."""
        self.files: list[Stamp] = []
        self._firsts: list[int] = []
        self._starts: list[Numbers] = []

    def add(self, stamp: Stamp, starts: Numbers) -> None:
        """Add the lines of one more file, which begin at these bytes."""
        self._firsts.append(len(self))
        self.files.append(stamp)
        self._starts.append(starts)

    def __len__(self) -> int:
        """The number of lines."""
        return self._firsts[-1] + len(self._starts[-1]) if self.files else 0

    def read(self, place: int) -> tuple[str, str]:
        """The line of a place, and the file's name. Raises InvalidCalibration as ``Stamp``."""
        number = bisect_right(self._firsts, place) - 1
        starts, stamp = self._starts[number], self.files[number]
        inside = place - self._firsts[number]
        start = int(starts[inside])
        # Blank lines may follow, for only lines with records are listed.
        end = int(starts[inside + 1]) if inside + 1 < len(starts) else stamp.size
        line, _, _ = stamp.read(start, end - start).partition(b"\n")
        return line.decode(), stamp.path.name
