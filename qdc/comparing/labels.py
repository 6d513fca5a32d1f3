"""Labels beside points: in their order, and not on top of each other."""

import math
from collections.abc import Sequence


def spread_labels(
    wanted: Sequence[float], apart: float, low: float = -math.inf, high: float = math.inf
) -> list[float]:
    """Move places ``wanted``, in any order, until neighbours are ``apart``; the order is kept.

    Overlapping labels form a block that is centred on the mean of what its members want, as far as
    it stays between ``low`` and ``high``. Where all of them take more room they begin at ``low``.
    """

    def centred(members: Sequence[int]) -> float:
        half = apart * (len(members) - 1) / 2
        mean = sum(wanted[i] for i in members) / len(members)
        return max(min(mean, high - half), low + half)

    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        members = [index]
        centre = centred(members)
        while blocks and centre - blocks[-1][0] < apart * (len(members) + len(blocks[-1][1])) / 2:
            members = blocks.pop()[1] + members
            centre = centred(members)
        blocks.append((centre, members))
    placed = [0.0] * len(wanted)
    for centre, members in blocks:
        for turn, index in enumerate(members):
            placed[index] = centre + (turn - (len(members) - 1) / 2) * apart
    return placed


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
