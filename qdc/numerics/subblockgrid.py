"""Blocks of ggml as levels for error feedback, refitted in any metric with what is stored.

A block has one or two fp16 super-scales, and for each sub-block small integers that multiply them.
``refit`` goes over the sub-blocks, solves for the step and the minimum of each with all others
fixed, takes the integers around the solution that cost least, and then solves for the super-scales
of the whole block. Source: related-systems.md A4, A5; the rest is ours.
"""

from collections.abc import Iterator
from typing import NamedTuple, Self

import torch
from torch import Tensor

from qdc.numerics.ggmltypes import BlockType, Fields
from qdc.numerics.grids import Grid
from qdc.numerics.subblockfit import (
    TINY,
    Levels,
    divisor,
    half,
    round_to_levels,
    searched,
    shared,
)

PASSES = 2
"""Of a refit over the sub-blocks, each followed by one for the super-scales."""


class Super(NamedTuple):
    """What is stored of the levels of a block; integers as numbers.

    Attributes:
        d: f32[n], fits fp16.
        scales: f32[n, S]; all 1 for a type without.
        dmin: f32[n], fits fp16; 0 for a type without minima.
        minima: f32[n, S].
    """

    d: Tensor
    scales: Tensor
    dmin: Tensor
    minima: Tensor

    def levels(self) -> Levels:
        """The products, each exact in fp32."""
        return Levels(self.d[:, None] * self.scales, self.dmin[:, None] * self.minima)

    def where(self, better: Tensor, other: Self) -> "Super":
        """The rows of ``other`` where ``better``, bool[n]."""
        pairs = zip(self, other, strict=True)
        return Super(
            *(torch.where(better if a.ndim == 1 else better[:, None], b, a) for a, b in pairs)
        )


class SubblockGrid(Grid):
    """The levels of one block of ggml for each row."""

    def __init__(self, kind: BlockType, stored: Super) -> None:
        """Take scales that are rounded to what is stored."""
        self.kind, self.stored, self.levels = kind, stored, stored.levels()

    @classmethod
    def fit(cls, block: Tensor, kind: BlockType, weights: Tensor) -> Self:
        """First levels of a block, by a search over ranges for each sub-block.

        Args:
            block: f32[n, width].
            kind: of the block.
            weights: f32[width], what an error of each column costs.

        Raises:
            OverflowError: a super-scale is not finite in fp16.
        """
        parts, costs = torch.unflatten(block, 1, (-1, kind.sub)), weights.reshape(-1, kind.sub)
        levels = searched(parts, costs, kind)
        codes = round_to_levels(parts, levels, kind)
        energy = (costs * codes.square()).sum(-1)
        if kind.scales is None:
            d, scales = half(levels.step[:, 0]), torch.ones_like(levels.step)
        else:
            d, scales = shared(levels.step, energy, *kind.scales)
        dmin, minima = torch.zeros_like(d), torch.zeros_like(scales)
        if kind.minima:
            dmin, minima = shared(levels.minimum, costs.sum(-1).expand_as(energy), 0, kind.minima)
        if not bool(d.isfinite().all() & dmin.isfinite().all()):
            raise OverflowError("a scale of a block is not finite in fp16")
        return cls(kind, Super(d, scales, dmin, minima))

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        part = column // self.kind.sub
        own = Levels(self.levels.step[:, part], self.levels.minimum[:, part])
        codes = round_to_levels(target[:, None], own, self.kind)[:, 0]
        return codes * own.step - own.minimum

    def written(self, codes: Tensor) -> Tensor:
        """Codes f32[n, S, w] written out, f32[n, width]."""
        return (codes * self.levels.step[..., None] - self.levels.minimum[..., None]).flatten(1)

    def codes(self, dense: Tensor) -> Tensor:
        """The codes, f32[n, S, w], of values that lie on the levels."""
        return round_to_levels(
            torch.unflatten(dense, 1, (-1, self.kind.sub)), self.levels, self.kind
        )

    def encode(self, dense: Tensor) -> Fields:
        """The fields of a block of one for each row, which write ``dense`` out."""
        stored, kind = self.stored, self.kind
        scales = stored.scales.to(torch.int8)[:, None] if kind.scales else None
        dmin = stored.dmin[:, None] if kind.minima else None
        minima = stored.minima.to(torch.uint8)[:, None] if kind.minima else None
        codes = self.codes(dense).to(torch.int8)[:, None]
        return Fields(codes, stored.d[:, None], scales, dmin, minima)

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit integers and super-scales of each row; a row stays where that gains nothing."""
        codes = self.codes(dense)
        best, cost = self.stored, row_costs(block, dense, metric)
        for start in self._starts(block, codes, metric):
            stored = start
            for _ in range(PASSES):
                if self.kind.scales is not None:
                    stored = self._integers(block, codes, metric, stored)
                stored = self._supers(block, codes, metric, stored)
                found = row_costs(block, type(self)(self.kind, stored).written(codes), metric)
                finite = stored.d.isfinite() & stored.dmin.isfinite()
                better = finite & (found < cost)
                best, cost = best.where(better, stored), torch.where(better, found, cost)
        grid = type(self)(self.kind, best)
        return grid, grid.written(codes)

    def _starts(self, block: Tensor, codes: Tensor, metric: Tensor) -> Iterator[Super]:
        """What is there, and integers of super-scales that were chosen anew."""
        yield self.stored
        kind = self.kind
        if kind.scales is None:
            return
        levels, error = self.levels, block - self.written(codes)
        gradient = error @ metric
        steps, minima = levels.step.clone(), levels.minimum.clone()
        energies, ones = torch.empty_like(steps), torch.empty_like(steps)
        for part, own in enumerate(_parts(kind)):
            normal = _normal(codes[:, part], gradient[:, own], metric[own, own], kind)
            steps[:, part] += normal.step
            minima[:, part] = (minima[:, part] + normal.minimum).clamp(min=0)
            energies[:, part], ones[:, part] = normal.energy, normal.ones
            moved = minima[:, part] - levels.minimum[:, part]
            change = (
                moved[:, None] - (steps[:, part] - levels.step[:, part])[:, None] * codes[:, part]
            )
            gradient += change @ metric[own]
        if kind.scales[0] == 0:
            steps.clamp_(min=0)
        d, scales = shared(steps, energies, *kind.scales)
        if not kind.minima:
            yield self.stored._replace(d=d, scales=scales)
            return
        yield Super(d, scales, *shared(minima, ones, 0, kind.minima))

    def _integers(self, block: Tensor, codes: Tensor, metric: Tensor, stored: Super) -> Super:
        """Choose the integers of each sub-block anew, all others fixed; no row's cost rises."""
        kind = self.kind
        assert kind.scales is not None
        lowest, highest = kind.scales
        levels = stored.levels()
        scales, minima = stored.scales.clone(), stored.minima.clone()
        gradient = (block - type(self)(kind, stored).written(codes)) @ metric
        d, dmin = divisor(stored.d), divisor(stored.dmin)
        for part, own in enumerate(_parts(kind)):
            step, minimum = levels.step[:, part], levels.minimum[:, part]
            normal = _normal(codes[:, part], gradient[:, own], metric[own, own], kind)
            wanted = (step + normal.step) / d
            change = torch.zeros_like(step)
            moved_step, moved_minimum = torch.zeros_like(step), torch.zeros_like(step)
            for near in (scales[:, part], wanted.floor(), wanted.ceil()):
                scale = near.clamp(lowest, highest)
                x = stored.d * scale - step
                place = minima[:, part]
                if kind.minima:
                    free = (normal.mixed * x - normal.gradient_one) / normal.ones
                    place = ((minimum + free) / dmin).round().clamp(0, kind.minima)
                z = stored.dmin * place - minimum
                found = normal.change(x, z)
                better = found < change
                change = torch.where(better, found, change)
                moved_step = torch.where(better, x, moved_step)
                moved_minimum = torch.where(better, z, moved_minimum)
                scales[:, part] = torch.where(better, scale, scales[:, part])
                minima[:, part] = torch.where(better, place, minima[:, part])
            moved = moved_minimum[:, None] - moved_step[:, None] * codes[:, part]
            gradient += moved @ metric[own]
        return Super(stored.d, scales, stored.dmin, minima)

    def _supers(self, block: Tensor, codes: Tensor, metric: Tensor, stored: Super) -> Super:
        """Solve for the super-scales of each row, integers and codes fixed."""
        up = (codes * stored.scales[..., None]).flatten(1).double()
        weighted, target = up @ metric.double(), block.double()
        energy, reached = (weighted * up).sum(1), (weighted * target).sum(1)
        if not self.kind.minima:
            return stored._replace(d=half((reached / energy.clamp(min=TINY)).float()))
        down = stored.minima[..., None].expand_as(codes).flatten(1).double()
        lowered = down @ metric.double()
        weight, mixed = (lowered * down).sum(1), (lowered * up).sum(1)
        offset = (lowered * target).sum(1)
        determinant = energy * weight - mixed.square()
        solvable = determinant > 1e-9 * energy * weight
        safe = torch.where(solvable, determinant, 1.0)
        d = (reached * weight - offset * mixed) / safe
        d = half(torch.where(solvable, d, reached / energy.clamp(min=TINY)).float())
        dmin = half(((d.double() * mixed - offset) / weight.clamp(min=TINY)).float())
        return stored._replace(d=d, dmin=torch.where(weight > 0, dmin, stored.dmin))


class _Normal(NamedTuple):
    """The cost of changing one sub-block's step by x and its minimum by z, f32[n] each."""

    energy: Tensor
    mixed: Tensor
    ones: Tensor
    gradient_code: Tensor
    gradient_one: Tensor
    step: Tensor
    minimum: Tensor

    def change(self, x: Tensor, z: Tensor) -> Tensor:
        """How much the cost grows."""
        linear = z * self.gradient_one - x * self.gradient_code
        return 2 * linear + x * x * self.energy - 2 * x * z * self.mixed + z * z * self.ones


def _normal(codes: Tensor, gradient: Tensor, metric: Tensor, kind: BlockType) -> _Normal:
    """Solve one sub-block; a type without minima moves its step alone."""
    weighted = codes @ metric
    energy, mixed = (weighted * codes).sum(1), weighted.sum(1)
    ones = metric.sum().expand_as(energy)
    by_code, by_one = (gradient * codes).sum(1), gradient.sum(1)
    alone = by_code / energy.clamp(min=TINY)
    if not kind.minima:
        return _Normal(energy, mixed, ones, by_code, by_one, alone, torch.zeros_like(alone))
    determinant = energy * ones - mixed.square()
    solvable = determinant > 1e-5 * energy * ones
    safe = torch.where(solvable, determinant, 1.0)
    step = torch.where(solvable, (by_code * ones - by_one * mixed) / safe, 0.0)
    minimum = (mixed * step - by_one) / ones
    return _Normal(energy, mixed, ones, by_code, by_one, step, minimum)


def row_costs(block: Tensor, dense: Tensor, metric: Tensor) -> Tensor:
    """``f64[n]``: E M E^T of each row."""
    error = (block - dense).double()
    return ((error @ metric.double()) * error).sum(1)


def _parts(kind: BlockType) -> list[slice]:
    return [slice(start, start + kind.sub) for start in range(0, kind.width, kind.sub)]
