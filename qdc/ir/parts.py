"""A tensor of a model that a checkpoint holds as a part of a larger one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Part:
    """Where a tensor is stored: the whole of another one, or some of its rows."""

    key: str
    """Name of the stored tensor."""
    rows: tuple[int, int] | None = None
    """First and last but one of the rows that are taken; None for all."""

    def shape(self, whole: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the part, of a stored tensor of this shape."""
        if self.rows is None:
            return whole
        first, last = self.rows
        return (max(0, min(last, *whole[:1]) - first), *whole[1:])
