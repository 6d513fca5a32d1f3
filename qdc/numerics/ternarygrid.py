"""Ternary levels with a scale and a shift for each row, refitted by 2 x 2 solves in any metric."""

from typing import Self

import torch
from torch import Tensor

from qdc.numerics.grids import Grid
from qdc.numerics.ternary import Levels, best_levels, nearest_codes


class TernaryGrid(Grid):
    """The levels shift - scale, shift and shift + scale of each row, alike in all columns."""

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        """Round levels to what is stored.

        Args:
            scale: f[n], >= 0.
            shift: f[n].

        Raises:
            OverflowError: One of them is not finite in fp16.
        """
        self.scale, self.shift = _half(scale), _half(shift)
        for name, tensor in (("scale", self.scale), ("shift", self.shift)):
            if not bool(tensor.isfinite().all()):
                raise OverflowError(f"a {name} is not finite in float16")

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        return self.scale * nearest_codes(target, self.scale, self.shift) + self.shift

    def dense(self, codes: Tensor) -> Tensor:
        """Write codes f32[n, g] out: the product is exact, the sum is rounded once."""
        return self.scale[:, None] * codes + self.shift[:, None]

    def encode(self, dense: Tensor) -> Tensor:
        """The codes that write ``dense`` out, which lies on the levels: f32[n, g]."""
        return nearest_codes(dense, self.scale[:, None], self.shift[:, None])

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit each row's scale and shift; a row stays as it is where that gains nothing."""
        codes = self.encode(dense)
        grid, solved = self.solve(best_levels(block, codes, metric))
        written = grid.dense(codes)
        better = solved & (_row_costs(block, written, metric) < _row_costs(block, dense, metric))
        chosen = self.choose(better, grid)
        return chosen, torch.where(better[:, None], written, dense)

    def solve(self, levels: Levels) -> tuple[Self, Tensor]:
        """Levels as they are stored, the shift moved to what is best for the rounded scale.

        Returns:
            A grid with this one's levels where there are no others, and bool[n]: where there are.
            There are none for a row whose system is singular, whose scale would not be positive, or
            whose levels fp16 does not hold.
        """
        scale = _half(levels.scale)
        shift = _half(levels.shift + (levels.scale - scale.double()) * levels.slope)
        solved = levels.solvable & scale.isfinite() & shift.isfinite() & (scale > 0)
        kept = (
            torch.where(solved, new, old) for new, old in ((scale, self.scale), (shift, self.shift))
        )
        return type(self)(*kept), solved

    def choose(self, rows: Tensor, other: Self) -> Self:
        """The levels of ``other`` in these rows, bool[n], and of this grid in the others."""
        scale = torch.where(rows, other.scale, self.scale)
        return type(self)(scale, torch.where(rows, other.shift, self.shift))


def _half(value: Tensor) -> Tensor:
    return value.to(torch.float16).to(torch.float32)


def _row_costs(block: Tensor, dense: Tensor, metric: Tensor) -> Tensor:
    """``f64[n]``: E M E^T of each row."""
    error = (block - dense).double()
    return ((error @ metric.double()) * error).sum(1)
