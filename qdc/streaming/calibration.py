"""What samples are drawn from."""

from collections.abc import Callable
from dataclasses import dataclass, field

from qdc.text.source import TextSource


@dataclass(frozen=True)
class Calibration:
    """The text that samples are drawn from, and how it becomes token ids."""

    source: TextSource
    encode: Callable[[str], list[int]]
    drawn: dict[tuple[object, ...], object] = field(default_factory=dict, compare=False)
    """Samples of this text by what was asked for: the text is looked at before the first pass, and
    passes that ask for the same do not draw again."""
