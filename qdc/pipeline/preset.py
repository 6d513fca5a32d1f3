"""A pipeline that has a name."""

from typing import NamedTuple


class Preset(NamedTuple):
    """A pipeline with a name: written in pipeline text, it stands for the text.

    Attributes:
        text: The pipeline.
        nominal_bits: Bits a weight as the publication of the method counts them; None where it
            counts none, or the method is ours. What is stored is counted elsewhere, and is more.
        source: Where the method is published, for tables: ``arXiv 2210.17323``.
        takes: Name of the pass to which options go that are written behind the preset's name. A
            preset without such a pass takes no options.
    """

    text: str
    nominal_bits: float | None = None
    source: str = ""
    takes: str = ""
