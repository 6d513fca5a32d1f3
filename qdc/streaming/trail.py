"""The way that a stream has gone, short enough for a journal."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Trail:
    """The way of a stream: with the weights of now it leads to the same values again."""

    stops: tuple[int, ...]
    """Every boundary at which values were held; each rounds them."""
    left: int
    """Nodes before this place are in a region that is finished."""
    calls: int
    """Linears executed, those of ways that were given up included."""
    routed: int
    """The same for the linears of experts, counted by tokens."""
    most: int | None = None
    """Samples of the largest batch that the device could hold; None if all fitted."""
