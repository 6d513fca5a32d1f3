"""Levels that depend on the part an element belongs to: one combinator for all partitions.

Each part brings a ``Part``: levels that are linear in a few numbers of each row. The combinator
looks up which part an element is of, rounds it there, and refits the numbers of all parts of a row
together, in any metric. Source: related-systems.md A4, A5, B5, B6.
"""

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from qdc.numerics.binarygrid import RIDGE
from qdc.numerics.grids import Grid
from qdc.numerics.parts import BinaryPart, Part


class PartitionGrid(Grid):
    """The levels of a block whose elements belong to parts."""

    def __init__(
        self, parts: Tensor, grids: Sequence[Part], allowed: Tensor, *, free: bool = False
    ) -> None:
        """Combine parts.

        Args:
            parts: u8[n, g], the number of the part of each element.
            grids: The parts, by number.
            allowed: bool[P, g], the parts that a column's elements may belong to.
            free: Whether an element may move to any part that its column allows, by its level:
                for formats that store the part of each element anyway.
        """
        self.parts, self.grids, self.allowed, self.free = parts, tuple(grids), allowed, free
        self._by_column: list[list[int]] = [
            column.nonzero().flatten().tolist() for column in allowed.T.cpu()
        ]

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round each element on the levels of its part, or of the nearest part if free."""
        first, *others = self._by_column[column]
        best = self.grids[first].nearest(column, target)
        for number in others:
            level = self.grids[number].nearest(column, target)
            if self.free:
                better = (level - target).abs() < (best - target).abs()
            else:
                better = self.parts[:, column] == number
            best = torch.where(better, level, best)
        return best

    def locate(self, dense: Tensor) -> Tensor:
        """The part of each element of a block on these levels, u8[n, g]."""
        if not self.free:
            return self.parts
        distance = torch.stack(
            [
                (grid.write(grid.basis(dense)) - dense).abs().masked_fill(~allowed, torch.inf)
                for grid, allowed in zip(self.grids, self.allowed, strict=True)
            ]
        )
        located: Tensor = distance.argmin(0).to(torch.uint8)
        return located

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit all rows' parameters by a system each, then column scales by one system."""
        parts = self.locate(dense)
        masks = [(parts == number).to(block.dtype) for number in range(len(self.grids))]
        bases = [grid.basis(dense) for grid in self.grids]
        masked = torch.cat([b * m for b, m in zip(bases, masks, strict=True)]).transpose(0, 1)
        weighted = masked @ metric
        right = weighted @ block[:, :, None]
        found = solve(weighted @ masked.transpose(1, 2), right)[:, :, 0].T
        counts = [len(grid.parameters) for grid in self.grids]
        grids = [
            grid.with_parameters(parameters)
            for grid, parameters in zip(self.grids, torch.split(found, counts), strict=True)
        ]
        if all(isinstance(grid, BinaryPart) and not grid.has_mean for grid in grids):
            signs = [grid.signs(dense) for grid in self.grids if isinstance(grid, BinaryPart)]
            grids = self._refit_columns(block, grids, signs, masks, metric)
            bases = [
                grid.basis_of(sign)
                for sign, grid in zip(signs, grids, strict=True)
                if isinstance(grid, BinaryPart)
            ]
        written = torch.zeros_like(block)
        for grid, basis, mask in zip(grids, bases, masks, strict=True):
            written = torch.where(mask > 0, grid.write(basis), written)
        return type(self)(parts, grids, self.allowed, free=self.free), written

    def _refit_columns(
        self,
        block: Tensor,
        grids: Sequence[Part],
        signs: Sequence[Tensor],
        masks: Sequence[Tensor],
        metric: Tensor,
    ) -> list[Part]:
        """Column scales of all parts together: one unknown for each component of each column.

        The entry of the system for components k of column j and l of column h is M_jh times the
        sum over rows of what they multiply.
        """
        factors, places = [], []
        for grid, sign, mask, allowed in zip(grids, signs, masks, self.allowed, strict=True):
            columns = allowed.nonzero().flatten()
            for k in range(len(sign)):
                scaled = grid.parameters[k, :, None] * sign[k] * mask
                factors.append(scaled[:, columns])
                places.append(columns)
        factor, place = torch.cat(factors, 1), torch.cat(places)
        system = (factor.T @ factor) * metric[place][:, place]
        right = (factor * (block @ metric)[:, place]).sum(0)
        found = solve(system, right[:, None])[:, 0]
        pieces = iter(torch.split(found, [len(p) for p in places]))
        refitted: list[Part] = []
        for grid, allowed in zip(grids, self.allowed, strict=True):
            assert isinstance(grid, BinaryPart)
            scales = torch.zeros_like(grid.col_scale)
            for k in range(len(scales)):
                scales[k, allowed] = next(pieces)
            refitted.append(grid.with_columns(scales))
        return refitted


def solve(system: Tensor, right: Tensor) -> Tensor:
    """Solve positive semidefinite systems f32[..., k, k]; an unknown without influence is 0.

    Each unknown is scaled to a diagonal of 1, and a ridge keeps equal ones apart; fp64 inside.
    """
    wide = system.double()
    diagonal = wide.diagonal(dim1=-2, dim2=-1)
    live = diagonal > 0
    scale = torch.where(live, diagonal, 1.0).rsqrt()
    unit = wide * scale[..., :, None] * scale[..., None, :]
    unit.diagonal(dim1=-2, dim2=-1).add_(RIDGE)
    found: Tensor = torch.linalg.solve(unit, right.double() * scale[..., None])
    return (found * (scale * live)[..., None]).float()
