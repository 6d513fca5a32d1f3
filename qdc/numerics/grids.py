"""What a block quantizer must know to take part in error feedback: its levels.

GPTQ's uniform grid, the binary components of DAQ, ternary levels or a codebook of scalars differ
in nothing else: the loop that chooses among the levels (``columns``), the compensation between the
blocks (``feedback``) and the alternation of codes and scales (``columns.quantize_block``) are
shared. Only ``nearest`` must be there; a grid whose scales are final leaves ``refit`` out. Source:
related-systems.md A4, A5, B4, B5.
"""

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor


class Grid(ABC):
    """The levels of one block: one set for each weight, fixed by the block's scales."""

    @abstractmethod
    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels.

        Args:
            column: Index inside the block.
            target: f32[n].

        Returns:
            f32[n], exactly the values that ``dense`` would write out for these codes.
        """

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit the scales with the codes of ``dense`` fixed, rounded to what is stored.

        May be left out: ``columns.quantize_block`` asks for it only with ``rounds``.

        Args:
            block: f32[n, g], what is to be met.
            dense: f32[n, g], made of this grid's levels.
            metric: f32[g, g], positive definite: the error E costs tr(E metric E^T).

        Returns:
            A grid of the same kind, and the same codes written out with its levels. It need not
            be better than this one: the caller compares.

        Raises:
            NotImplementedError: the scales of this grid stay as they are first fitted.
            OverflowError: a scale does not fit its stored dtype.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no refit: implement it, or ask for rounds=0"
        )

    def nearest_each(self, rows: Tensor, columns: Tensor, target: Tensor) -> Tensor:
        """Round single weights to their nearest levels.

        May be left out: only feedback from row to row asks for it.

        Args:
            rows: i64[k], the row of each.
            columns: i64[k], its column inside the block.
            target: f32[k].

        Returns:
            f32[k], as ``nearest`` gives it.

        Raises:
            NotImplementedError: this grid rounds whole columns only.
        """
        raise NotImplementedError(
            f"{type(self).__name__} rounds no single weights: implement nearest_each"
        )

    def refit_together(
        self, block: Tensor, dense: Tensor, metric: Tensor, rows: Tensor
    ) -> tuple[Self, Tensor]:
        """Refit as ``refit`` does, where errors of several rows cost together.

        May be left out: only feedback from row to row asks for it, with ``rounds``.

        Args:
            block: f32[n, g], what is to be met.
            dense: f32[n, g], made of this grid's levels.
            metric: f32[g, g], positive definite.
            rows: f32[n, n], positive definite: the error E costs tr(rows E metric E^T).

        Raises:
            NotImplementedError: the scales of this grid are fitted row by row, or not at all.
            OverflowError: a scale does not fit its stored dtype.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no refit for rows together: implement refit_together, or "
            "ask for rounds=0"
        )
