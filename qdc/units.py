"""Sizes as people read and write them, and how they are told how far a task is."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable

from qdc.errors import QdcError

Progress = Callable[[int, int], None]
"""Called with how much is done, and the total."""
StepProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it, and the total."""


class DetailedProgress(ABC):
    """A ``StepProgress`` that is told more: what is at work, and how long all may still take."""

    @abstractmethod
    def __call__(self, what: str, done: int, total: int) -> None:
        """Take what is being done, how much of it, and the total; 0 where that is unknown."""

    @abstractmethod
    def working(self, on: str, left: float | None) -> None:
        """Take what works on which part, and the seconds that all of it may take from now on.

        The seconds are None where nothing is known.
        """


BINARY = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(nbytes: int) -> str:
    """``1.968 GB (1.833 GiB)``; smaller units for smaller sizes."""
    for name, decimal, binary in (
        ("G", 10**9, 1 << 30),
        ("M", 10**6, 1 << 20),
        ("k", 10**3, 1 << 10),
    ):
        if nbytes >= decimal:
            return f"{nbytes / decimal:.4g} {name}B ({nbytes / binary:.4g} {name.upper()}iB)"
    return f"{nbytes} B"


def duration(seconds: float) -> str:
    """``12 s``, ``3.4 min``, ``2.1 h``, ``5 days``."""
    for name, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (name != "days" and seconds >= length):
            return f"{seconds / length:.1f} {name}"
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds:.1g} s"


def parse_size(text: str, option: str) -> int:
    """``8G``, ``512M``, ``1.5G``, ``1000000``: bytes, with binary units as memory is sold.

    Raises:
        QdcError: the text is no size; names the option.
    """
    found = re.fullmatch(r"(\d{1,18}(?:\.\d{1,9})?) ?([KMGT]?)(?:i?B)?", text.strip(), re.I)
    if found is None:
        raise QdcError(
            f"{option} is no size: {text!r}",
            help="write bytes, or a number with K, M, G or T, as in 8G",
        )
    return int(float(found[1]) * BINARY[found[2].upper()])
