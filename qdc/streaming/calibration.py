"""What samples are drawn from."""

from collections.abc import Callable
from dataclasses import dataclass

from qdc.text.source import TextSource


@dataclass(frozen=True)
class Calibration:
    """The text that samples are drawn from, and how it becomes token ids."""

    source: TextSource
    encode: Callable[[str], list[int]]
