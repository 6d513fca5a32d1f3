"""Labels beside points: in their order, and not on top of each other."""

from collections.abc import Sequence


def spread_labels(wanted: Sequence[float], apart: float) -> list[float]:
    """Move places ``wanted``, in any order, until neighbours are ``apart``; the order is kept.

    Overlapping labels form a block that is centred on the mean of what its members want.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, list[int]]] = []
    for index in order:
        centre, members = wanted[index], [index]
        while blocks and centre - blocks[-1][0] < apart * (len(members) + len(blocks[-1][1])) / 2:
            members = blocks.pop()[1] + members
            centre = sum(wanted[i] for i in members) / len(members)
        blocks.append((centre, members))
    placed = [0.0] * len(wanted)
    for centre, members in blocks:
        for turn, index in enumerate(members):
            placed[index] = centre + (turn - (len(members) - 1) / 2) * apart
    return placed


def within(places: Sequence[float], low: float, high: float) -> list[float]:
    """Move places as one, and no further than they must, so that they lie between two bounds.

    Where they take more room than there is they begin at ``low``.
    """
    if not places:
        return []
    by = max(min(0.0, high - max(places)), low - min(places))
    return [place + by for place in places]


def shortened(name: str, most: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
