"""Levels that depend on the part an element belongs to: one combinator for all partitions.

Each part brings a ``Part``: levels that are linear in a few numbers of each row. The combinator
looks up which part an element is of, rounds it there, and refits the numbers of all parts of a row
together, in any metric. Source: related-systems.md A4, A5, B5, B6.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from qdc.numerics.binarygrid import RIDGE
from qdc.numerics.components import Components
from qdc.numerics.grids import Grid
from qdc.numerics.partbinary import PartFit
from qdc.numerics.rounding import nearest_signs


class Part(ABC):
    """The levels of one part of a block, linear in ``parameters``."""

    parameters: Tensor
    """f32[K, n], rounded to what is stored."""

    @abstractmethod
    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round f32[n] to the levels of a column, as ``Grid.nearest`` does."""

    @abstractmethod
    def basis(self, dense: Tensor) -> Tensor:
        """What the parameters multiply at the codes nearest to ``dense`` f32[n, g]: f32[K, n, g]."""

    @abstractmethod
    def write(self, basis: Tensor) -> Tensor:
        """The levels f32[n, g] of a basis, exactly as the codec's ``dense`` writes them."""

    @abstractmethod
    def with_parameters(self, parameters: Tensor) -> Self:
        """The part with other parameters f32[K, n], which are rounded. Raises ``OverflowError``."""


class BinaryPart(Part):
    """mean + sum over k of +-row_scale_k col_scale_k, with means or with column scales."""

    def __init__(self, fit: PartFit, *, has_mean: bool) -> None:
        """Round a fit to fp16. Raises ``OverflowError``; the signs of the fit are not read."""
        scales = fit.components
        self.has_mean = has_mean
        self.mean = rounded(fit.mean)
        self.row_scale, self.col_scale = rounded(scales.row_scale), rounded(scales.col_scale)
        parameters = self.row_scale
        self.parameters = torch.cat([self.mean[None], parameters]) if has_mean else parameters

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its two or four levels."""
        first, *second = self.row_scale * self.col_scale[:, column, None]
        if not second:
            plus, minus = first + self.mean, self.mean - first
            return torch.where((target - self.mean) * first >= 0, plus, minus)
        total, other = first + second[0], first - second[0]
        levels = torch.stack((total, other, -other, -total)) + self.mean
        choice = (levels - target).abs_().argmin(0, keepdim=True)
        return levels.gather(0, choice)[0]

    def signs(self, dense: Tensor) -> Tensor:
        """Signs of the levels nearest to ``dense``, f32[K, n, g]."""
        centred = (dense - self.mean[:, None])[:, None]
        return nearest_signs(centred, self.row_scale[:, :, None], self.col_scale[:, None])[:, :, 0]

    def basis(self, dense: Tensor) -> Tensor:
        """Ones for the mean; signs times column scales."""
        return self.basis_of(self.signs(dense))

    def basis_of(self, signs: Tensor) -> Tensor:
        """The basis at given signs, [K, n, g]."""
        scaled = signs * self.col_scale[:, None]
        return torch.cat([torch.ones_like(scaled[:1]), scaled]) if self.has_mean else scaled

    def write(self, basis: Tensor) -> Tensor:
        """Components in ascending order, then the mean."""
        total, *others = self.row_scale[:, :, None] * (basis[1:] if self.has_mean else basis)
        for other in others:
            total = total + other
        return total + self.mean[:, None] if self.has_mean else total

    def with_parameters(self, parameters: Tensor) -> Self:
        """Other means and row scales."""
        mean, scales = (parameters[0], parameters[1:]) if self.has_mean else (self.mean, parameters)
        return self._like(mean, scales, self.col_scale)

    def with_columns(self, columns: Tensor) -> Self:
        """Other column scales f32[K, g], brought to a mean magnitude of 1 where they are not 0."""
        live = columns != 0
        mean = columns.abs().sum(1) / live.sum(1).clamp(min=1)
        unit = torch.where(mean > 0, mean, 1.0)
        return self._like(self.mean, self.row_scale * unit[:, None], columns / unit[:, None])

    def _like(self, mean: Tensor, rows: Tensor, columns: Tensor) -> Self:
        signs = torch.empty(0, dtype=torch.int8, device=rows.device)
        fit = PartFit(mean, Components(signs, rows, columns))
        return type(self)(fit, has_mean=self.has_mean)


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
        self._by_column = [column.nonzero().flatten().tolist() for column in allowed.T.cpu()]

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
        return distance.argmin(0).to(torch.uint8)

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


def rounded(scales: Tensor) -> Tensor:
    """Round to fp16, in f32. Raises ``OverflowError`` where that is not finite."""
    half = scales.half().float()
    if not bool(half.isfinite().all()):
        raise OverflowError("a scale or mean of the block is not finite in fp16")
    return half
