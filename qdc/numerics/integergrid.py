"""Uniform grids with an integer zero point, as engines load them: levels scale * (code - zero).

A scale may be held to the numbers that bf16 and fp16 share (eight significant bits), so that an
engine that computes in either reads it as it is. Zero points may be held to the two codes next to
the middle: then the grid is a symmetric one, turned round where its scale is taken as negative, and
no zero point need be stored by whoever can write that. Source of the refit: related-systems.md A5.
"""

from typing import Final, Literal, Self

import torch
from torch import Tensor

from qdc.numerics.grids import Grid
from qdc.numerics.uniform import Uniform

Scales = Literal["f16", "bf16"]
"""What numbers a scale may be: those of fp16, or those of fp16 that are numbers of bf16 too."""
Zeros = Literal["central", "any"]
"""Which codes may stand for 0: the two next to the middle of the grid, or all."""
SINGULAR: Final = 1e-9
"""Share of its parts below which the energy of a row's codes is not divided by."""
STEPS, NARROWEST = 60, 0.25
"""Scales that a first fit tries for each zero point, and the narrowest as a share of the widest."""


def shortened(scale: Tensor, kind: Scales) -> Tensor:
    """Round a scale to what is stored, in fp32: nearest, ties to even; infinite beyond fp16."""
    if kind == "bf16":
        scale = scale.to(torch.bfloat16)
    return scale.to(torch.float16).to(torch.float32)


def zero_codes(bits: int, zeros: Zeros) -> range:
    """The codes that may stand for 0."""
    middle = 1 << (bits - 1)
    return range(middle - 1, middle + 1) if zeros == "central" else range(1 << bits)


class IntegerGrid(Grid):
    """The levels scale * (code - zero) of each row, the same in all columns of a block."""

    def __init__(
        self, scale: Tensor, zero: Tensor, bits: int, zeros: Zeros = "any", scales: Scales = "f16"
    ) -> None:
        """Take grids that are rounded to what is stored.

        Args:
            scale: f32[n], >= 0.
            zero: f32[n], whole numbers, each a code.
            bits: of a code.
            zeros: the codes that ``refit`` may choose.
            scales: what it rounds scales to.
        """
        self.scale, self.zero, self.bits = scale, zero, bits
        self.zeros: Zeros = zeros
        self.scales: Scales = scales

    @classmethod
    def fit(
        cls,
        block: Tensor,
        bits: int,
        weights: Tensor,
        zeros: Zeros = "any",
        scales: Scales = "f16",
    ) -> Self:
        """Find the scale and the zero point of each row that rounds with the least squared error.

        Args:
            block: f32[n, g].
            bits: of a code.
            weights: f32[g], what the error of each column counts.
            zeros: the codes that may stand for 0.
            scales: what scales are rounded to.

        Raises:
            OverflowError: a scale is not finite in fp16.
        """
        highest, codes = (1 << bits) - 1, zero_codes(bits, zeros)
        below, above = (-block.amin(1)).clamp(min=0), block.amax(1).clamp(min=0)
        best = torch.full_like(below, torch.inf)
        scale, zero = torch.zeros_like(below), torch.full_like(below, codes[len(codes) // 2])
        for code in codes:
            widest = torch.maximum(below / max(code, 0.5), above / max(highest - code, 0.5))
            for share in torch.linspace(1, NARROWEST, STEPS).tolist():
                tried = shortened(share * widest, scales)
                place = torch.full_like(tried, code)
                error = _written(block, tried[:, None], code, highest).sub_(block).square_()
                cost = (error @ weights).nan_to_num(nan=torch.inf)
                better = cost < best
                best = torch.where(better, cost, best)
                scale = torch.where(better, tried, scale)
                zero = torch.where(better, place, zero)
        if not bool(scale.isfinite().all() & best.isfinite().all()):
            raise OverflowError("a scale of the block is not finite in fp16")
        return cls(scale, zero, bits, zeros, scales)

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        return _written(target, self.scale, self.zero, (1 << self.bits) - 1)

    def round(self, block: Tensor) -> Tensor:
        """Round a block, f32[n, g], to its nearest levels."""
        return _written(block, self.scale[:, None], self.zero[:, None], (1 << self.bits) - 1)

    def encode(self, dense: Tensor) -> Uniform:
        """The codes that write ``dense`` out, which lies on the levels."""
        return Uniform(self._codes(dense).to(torch.uint8), self.scale, 0 - self.zero * self.scale)

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Solve for each row's scale with every zero point, and take the best pair.

        A row's grid stays as it is where that gains nothing, so no row's cost rises.
        """
        codes, m, wide = self._codes(dense).double(), metric.double(), block.double()
        ones = m.sum(1)
        weighted = codes @ m
        squares, codes_one, one_one = (weighted * codes).sum(1), codes @ ones, ones.sum()
        codes_weight, one_weight = (weighted * wide).sum(1), wide @ ones
        options = zero_codes(self.bits, self.zeros)
        zero = torch.tensor(options, dtype=torch.float64, device=m.device)[:, None]
        # The error is w - s (c - z): for each z the best s is one division.
        energy = squares - 2 * zero * codes_one + zero.square() * one_one
        gain = (codes_weight - zero * one_weight).clamp(min=0)
        solvable = energy > SINGULAR * (squares + zero.square() * one_one)
        energy, gain = torch.where(solvable, energy, 1.0), torch.where(solvable, gain, 0.0)
        choice = (gain.square() / energy).argmax(0, keepdim=True)
        scale = shortened((gain / energy).gather(0, choice)[0].float(), self.scales)
        best = choice[0].float() + options[0]
        written = scale[:, None] * (codes.float() - best[:, None])
        before, after = (_row_costs(wide - each, m) for each in (dense, written))
        # Not better either: a row whose system is singular, or a scale beyond fp16.
        better = (scale > 0) & (after < before)
        refitted = type(self)(
            torch.where(better, scale, self.scale),
            torch.where(better, best, self.zero),
            self.bits,
            self.zeros,
            self.scales,
        )
        return refitted, torch.where(better[:, None], written, dense)

    def _codes(self, values: Tensor) -> Tensor:
        scale, zero = self.scale[:, None], self.zero[:, None]
        return _steps(values, scale, zero, (1 << self.bits) - 1)


def _steps(values: Tensor, scale: Tensor, zero: Tensor | float, highest: int) -> Tensor:
    """Nearest codes, clamped to the grid; the zero point where a scale is 0."""
    live = scale > 0
    steps = (values * live) / torch.where(live, scale, 1.0) + zero
    return steps.round_().clamp_(0, highest)


def _written(values: Tensor, scale: Tensor, zero: Tensor | float, highest: int) -> Tensor:
    """Nearest levels; the difference and the product are exact in fp32."""
    return _steps(values, scale, zero, highest).sub_(zero).mul_(scale)


def _row_costs(error: Tensor, metric: Tensor) -> Tensor:
    """``f64[n]``: E M E^T of each row."""
    return ((error @ metric) * error).sum(1)
