"""The tiles of a matrix as sequences: each column of a tile downwards, one after the other."""

from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import pad

LONGEST = 1 << 12
"""Most numbers of a tile."""
USUAL = 128
"""Rows of a tile."""
SOONER, PARTS = 64, 32
"""Where rows hand errors on, tiles are at least so high, and about so many stand in a column."""
SHORTEST = 64
"""Numbers of a tile that is made for a matrix of few rows: a ring of fewer bits wastes some."""


class Tiling(NamedTuple):
    """How rows and columns are cut; the last tiles may reach beyond a matrix.

    Attributes:
        height: Rows of a tile.
        width: Columns of a tile.
    """

    height: int
    width: int

    @classmethod
    def fitted(cls, rows: int, height: int, width: int) -> "Tiling":
        """Spread rows evenly over tiles of at most ``height``; widen those that come out short."""
        even = -(-rows // -(-rows // height))
        return cls(even, max(width, -(-SHORTEST // even)))

    @property
    def size(self) -> int:
        """Numbers of a tile."""
        return self.height * self.width

    def tiles(self, rows: int, columns: int) -> tuple[int, int]:
        """Tiles of a matrix along its rows and along its columns."""
        return -(-rows // self.height), -(-columns // self.width)

    def sequences(self, matrix: Tensor) -> Tensor:
        """Cut a matrix, filled up with 0.

        Args:
            matrix: [n, m].

        Returns:
            [size, tiles], the tiles of the first columns first, from the first rows down.
        """
        rows, columns = matrix.shape
        down, along = self.tiles(rows, columns)
        filled = pad(matrix, (0, along * self.width - columns, 0, down * self.height - rows))
        cut = filled.reshape(down, self.height, along, self.width)
        return cut.permute(3, 1, 2, 0).reshape(self.size, along * down)

    def matrix(self, sequences: Tensor, rows: int, columns: int) -> Tensor:
        """Put the tiles together, [n, m]: undo ``sequences``."""
        down, along = self.tiles(rows, columns)
        cut = sequences.reshape(self.width, self.height, along, down).permute(3, 1, 2, 0)
        return cut.reshape(down * self.height, along * self.width)[:rows, :columns]


def usual_height(rows: int, *, guided: bool) -> int:
    """Choose the most rows of a tile.

    Args:
        rows: of the matrix.
        guided: whether rows hand errors on, which those of one tile do not among themselves.
    """
    return max(SOONER, min(USUAL, rows // PARTS)) if guided else USUAL
