"""A tensor of a model that a checkpoint holds as a part of a larger one."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Where a tensor is stored: as a whole, as rows of another one, or as one of a stack."""

    key: str
    """Name of the stored tensor."""
    rows: tuple[int, int] | None = None
    """First and last but one of the rows that are taken; None for all."""
    place: int | None = None
    """Which of the tensors that are stacked along the first axis; None if none are."""

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part, of a stored tensor of this shape."""
        inner = whole if self.place is None else whole[1:]
        if self.rows is None:
            return inner
        first, last = self.rows
        return (max(0, min(last, *inner[:1]) - first), *inner[1:])

    @property
    def cut(self) -> tuple[int | slice, ...]:
        """What indexes the stored tensor; empty for the whole of it."""
        rows = () if self.rows is None else (slice(*self.rows),)
        return rows if self.place is None else (self.place, *rows)


def stacked(key: str, names: Mapping[int, tuple[tuple[str, int], ...]]) -> dict[str, Part]:
    """Parts of a stack, ``[experts, rows, columns]``.

    Args:
        key: of the stored tensor.
        names: for each place of the stack the tensors that are its rows, with their numbers.
    """
    found = {}
    for place, parts in names.items():
        first = 0
        for name, rows in parts:
            found[name] = Part(key, (first, first + rows), place)
            first += rows
    return found
