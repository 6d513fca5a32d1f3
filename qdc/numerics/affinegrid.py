"""Uniform grids as levels for error feedback, refitted by 2 x 2 solves in any metric."""

from typing import NamedTuple, Self

import torch
from torch import Tensor

from qdc.numerics.grids import Grid
from qdc.numerics.uniform import NORM, Search, Uniform, Zero, fit_grid, round_to_grid

SINGULAR = 1e-9
"""Share of the product of its diagonal below which a 2 x 2 system is not solved."""


class AffineGrid(Grid):
    """The levels scale * code + minimum of each row, the same in all columns of a block."""

    def __init__(self, scale: Tensor, minimum: Tensor, bits: int, zero: Zero) -> None:
        """Take grids that are rounded to what is stored.

        Args:
            scale: f32[n], >= 0.
            minimum: f32[n].
            bits: of a code.
            zero: as for ``uniform.fit_grid``.
        """
        self.scale, self.minimum, self.bits, self.zero = scale, minimum, bits, zero

    @classmethod
    def fit(
        cls,
        block: Tensor,
        bits: int,
        search: Search = "minmax",
        zero: Zero = "float",
        norm: float = NORM,
    ) -> Self:
        """Fit a grid to each row: ``uniform.fit_grid``."""
        return cls(*fit_grid(block, bits, search, zero, norm), bits, zero)

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        codes = round_to_grid(target, self.scale, self.minimum, self.bits)
        return codes.mul_(self.scale).add_(self.minimum)

    def encode(self, dense: Tensor) -> Uniform:
        """The codes that write ``dense`` out, which lies on the levels."""
        codes = round_to_grid(dense, self.scale, self.minimum, self.bits)
        return Uniform(codes.to(torch.uint8), self.scale, self.minimum)

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit each row's scale and minimum, or its scale and integer zero point.

        A row's grid stays as it is where that gains nothing, so no row's cost rises.
        """
        codes = round_to_grid(dense, self.scale, self.minimum, self.bits)
        products = _products(block, codes, metric)
        if self.zero == "float":
            scale, minimum = _fit_float(products)
        else:
            scale, minimum = _fit_packed(products, 2**self.bits - 1)
        written = scale[:, None] * codes + minimum[:, None]
        before, after = (_row_costs(block, each, metric) for each in (dense, written))
        # Not better either: a row whose system is singular, or a grid beyond fp16.
        better = (scale > 0) & (after < before)
        refitted = type(self)(
            torch.where(better, scale, self.scale),
            torch.where(better, minimum, self.minimum),
            self.bits,
            self.zero,
        )
        return refitted, torch.where(better[:, None], written, dense)


class _Products(NamedTuple):
    """What the normal equations of each row are made of, f64[n]: M between codes, ones, weights."""

    code_code: Tensor
    code_one: Tensor
    one_one: Tensor
    code_weight: Tensor
    one_weight: Tensor


def _products(block: Tensor, codes: Tensor, metric: Tensor) -> _Products:
    wide, target, m = codes.double(), block.double(), metric.double()
    weighted, ones = wide @ m, m.sum(1)
    return _Products(
        (weighted * wide).sum(1),
        wide @ ones,
        ones.sum().expand(len(wide)),
        (weighted * target).sum(1),
        target @ ones,
    )


def _fit_float(p: _Products) -> tuple[Tensor, Tensor]:
    """The best scale, then the best minimum for the rounded scale; scale 0 where singular."""
    determinant = p.code_code * p.one_one - p.code_one.square()
    solvable = determinant > SINGULAR * p.code_code * p.one_one
    numerator = p.code_weight * p.one_one - p.one_weight * p.code_one
    scale = _half(torch.where(solvable, numerator / determinant, 0.0))
    minimum = (p.one_weight - scale.double() * p.code_one) / p.one_one
    return scale, _half(minimum)


def _fit_packed(p: _Products, highest: int) -> tuple[Tensor, Tensor]:
    """The best scale for each zero point, and of these the zero point of least cost."""
    zero = torch.arange(highest + 1, dtype=torch.float64, device=p.one_one.device)[:, None]
    energy = p.code_code - 2 * zero * p.code_one + zero.square() * p.one_one
    numerator = (p.code_weight - zero * p.one_weight).clamp(min=0)
    solvable = energy > SINGULAR * (p.code_code + zero.square() * p.one_one)
    energy = torch.where(solvable, energy, 1.0)
    numerator = torch.where(solvable, numerator, 0.0)
    choice = (numerator.square() / energy).argmax(0, keepdim=True)
    scale = _half((numerator / energy).gather(0, choice)[0])
    return scale, 0 - choice[0].to(torch.float32) * scale


def _half(value: Tensor) -> Tensor:
    return value.to(torch.float16).to(torch.float32)


def _row_costs(block: Tensor, dense: Tensor, metric: Tensor) -> Tensor:
    """``f64[n]``: E M E^T of each row."""
    error = (block - dense).double()
    return ((error @ metric.double()) * error).sum(1)
