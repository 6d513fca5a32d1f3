"""Graphics cards that a compile can be planned for without having one.

Memory and peaks are those of the vendors' data sheets; nothing here was measured. Products are
planned at the peak of plain fp32 and fp64 units, for a compile multiplies without TF32, and numbers
that are read or written elementwise at the memory's bandwidth.
"""

from typing import NamedTuple

from qdc.errors import UnknownName, nearest
from qdc.planning.rates import Rates

TERA, GIGA = 1e12, 10**9
FP32 = 4
"""Bytes of a number."""


class Card(NamedTuple):
    """One card, by its data sheet."""

    title: str
    gigabytes: int
    fp32: float
    """Tera operations a second."""
    fp64: float
    """The same."""
    bandwidth: float
    """Gigabytes a second."""

    @property
    def memory(self) -> int:
        """Bytes."""
        return self.gigabytes * GIGA

    @property
    def rates(self) -> Rates:
        """Its peaks."""
        elements = self.bandwidth * GIGA / FP32
        return Rates(self.fp32 * TERA, self.fp64 * TERA, elements)


CARDS = {
    "3060": Card("GeForce RTX 3060", 12, 12.7, 0.199, 360),
    "3090": Card("GeForce RTX 3090", 24, 35.6, 0.556, 936),
    "4080": Card("GeForce RTX 4080", 16, 48.7, 0.761, 717),
    "4090": Card("GeForce RTX 4090", 24, 82.6, 1.29, 1008),
    "5090": Card("GeForce RTX 5090", 32, 104.8, 1.64, 1792),
    "a10": Card("A10", 24, 31.2, 0.488, 600),
    "a100": Card("A100 80 GB SXM", 80, 19.5, 9.7, 2039),
    "a100-40gb": Card("A100 40 GB SXM", 40, 19.5, 9.7, 1555),
    "a6000": Card("RTX A6000", 48, 38.7, 0.605, 768),
    "h100": Card("H100 SXM", 80, 67, 34, 3350),
    "h100-pcie": Card("H100 PCIe", 80, 51, 26, 2000),
    "h200": Card("H200 SXM", 141, 67, 34, 4800),
    "l4": Card("L4", 24, 30.3, 0.473, 300),
    "l40s": Card("L40S", 48, 91.6, 1.43, 864),
    "t4": Card("T4", 16, 8.1, 0.253, 320),
    "v100": Card("V100 32 GB SXM", 32, 15.7, 7.8, 900),
}


def find_card(name: str) -> Card:
    """A card by its name, as ``h100`` or ``RTX 4090``. Raises ``UnknownName`` with the nearest."""
    words = name.lower().replace("_", " ").replace("-", " ").split()
    short = "-".join(word for word in words if word not in ("nvidia", "geforce", "rtx"))
    if short not in CARDS:
        near, all_names = nearest(short, CARDS), ", ".join(CARDS)
        raise UnknownName(
            f"no card is called {name!r}",
            where=["--gpu"],
            help=f"{near}; known: {all_names}" if near.startswith("did") else f"known: {all_names}",
        )
    return CARDS[short]
