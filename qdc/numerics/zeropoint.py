"""Uniform grids of any width whose place is an integer zero point of four bits.

A level is scale * (code - zero). A grid of two to four bits has a zero point among its codes, so
that 0 is a level. One of a single bit counts sixteenths of its step instead: two levels that had
to hold 0 could not stand on both sides of it. Source: related-systems.md 6; the sixteenths are
ours, for the publication stores nothing that says where a grid of one bit stands.
"""

from typing import Final, Self

import torch
from torch import Tensor

from qdc.numerics.grids import Grid

PARTS: Final = 16
"""Parts of a step that the zero point of a grid of one bit counts."""
WIDEST: Final = 4
"""Bits of a code at most: its zero point has four bits."""
AT_ONCE: Final = 1 << 20
"""Weights times ranges that a search holds in memory together."""
SINGULAR: Final = 1e-9
"""Share of its terms below which the energy of a row's codes is not divided by."""


def zero_parts(bits: int) -> int:
    """Say how many parts of a step the zero point of such a grid counts."""
    return PARTS if bits == 1 else 1


def highest_zero(bits: int) -> int:
    """Say the highest zero point of a grid, in its parts."""
    return PARTS - 1 if bits == 1 else 2**bits - 1


class ZeroPointGrid(Grid):
    """The levels scale * (code - zero) of each row, the same in all columns of a block."""

    def __init__(self, scale: Tensor, zero: Tensor, bits: int) -> None:
        """Take grids that are rounded to what is stored.

        Args:
            scale: f32[n], >= 0, fits fp16 exactly.
            zero: f32[n], in steps: whole ones, or sixteenths for one bit.
            bits: of a code, 1 to 4.
        """
        self.scale, self.zero, self.bits = scale, zero, bits

    @classmethod
    def spanning(cls, low: Tensor, high: Tensor, bits: int) -> Self:
        """Span from ``low`` to ``high``, both f32[...]; with more than one bit 0 lies between.

        Raises:
            OverflowError: If a scale is not finite in fp16.
        """
        scale, zero = _spanning(low, high, bits)
        if not bool(scale.isfinite().all()):
            raise OverflowError("a scale of the block is not finite in fp16")
        return cls(scale, zero, bits)

    def nearest(self, column: int, target: Tensor) -> Tensor:
        """Round one column to its nearest levels."""
        return _written(target, self.scale, self.zero, self.bits)

    def round(self, block: Tensor) -> Tensor:
        """Round a block, f32[n, g], to its nearest levels."""
        return _written(block, self.scale[:, None], self.zero[:, None], self.bits)

    def encode(self, dense: Tensor) -> Tensor:
        """Give the codes u8[n, g] that write ``dense`` out, which lies on the levels."""
        codes = _codes(dense, self.scale[:, None], self.zero[:, None], self.bits)
        return codes.to(torch.uint8)

    def zero_code(self) -> Tensor:
        """Give the zero points as they are stored, u8[n], 0 to 15."""
        return (self.zero * zero_parts(self.bits)).to(torch.uint8)

    def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
        """Refit each row's scale for every zero point, and take the best pair.

        A row's grid stays as it is where that gains nothing, so no row's cost rises.
        """
        codes = _codes(dense, self.scale[:, None], self.zero[:, None], self.bits).double()
        m, wide = metric.double(), block.double()
        ones = m.sum(1)
        weighted = codes @ m
        squares, codes_one = (weighted * codes).sum(1), codes @ ones
        codes_weight, one_weight = (weighted * wide).sum(1), wide @ ones
        count = highest_zero(self.bits) + 1
        zero = torch.arange(count, dtype=torch.float64, device=m.device)[:, None]
        zero = zero / zero_parts(self.bits)
        # The error is w - s (c - z): for each z the best s is one division.
        constant = zero.square() * ones.sum()
        energy = squares - 2 * zero * codes_one + constant
        gain = (codes_weight - zero * one_weight).clamp(min=0)
        solvable = energy > SINGULAR * (squares + constant)
        energy, gain = torch.where(solvable, energy, 1.0), torch.where(solvable, gain, 0.0)
        choice = (gain.square() / energy).argmax(0, keepdim=True)
        scale = (gain / energy).gather(0, choice)[0].half().float()
        best = (choice[0].double() / zero_parts(self.bits)).float()
        written = scale[:, None] * (codes.float() - best[:, None])
        before, after = (_row_costs(wide - each, m) for each in (dense, written))
        # Not better either: a row whose system is singular, or a scale beyond fp16.
        better = (scale > 0) & (after < before)
        refitted = type(self)(
            torch.where(better, scale, self.scale), torch.where(better, best, self.zero), self.bits
        )
        return refitted, torch.where(better[:, None], written, dense)


def search_span(
    block: Tensor,
    low: Tensor,
    high: Tensor,
    bits: int,
    factors: Tensor,
    norm: float,
    weights: Tensor | None = None,
) -> ZeroPointGrid:
    """Find for each row the best of several ranges around its own.

    Args:
        block: f32[n, g].
        low: f32[n], where the range of a row begins.
        high: f32[n], where it ends.
        bits: Of a code.
        factors: f32[t], what both ends are multiplied by; of equals the first one wins.
        norm: The loss is the sum of |error|^norm.
        weights: f32[n, g], what each weight's loss counts; all the same if not given.

    Raises:
        OverflowError: If the best scale is not finite in fp16.
    """
    losses, scales, zeros = [], [], []
    for some in torch.split(factors, max(1, AT_ONCE // block.numel())):
        middle = (low + high) / 2 if bits == 1 else torch.zeros_like(low)
        lows, highs = (middle + some[:, None] * (end - middle) for end in (low, high))
        scale, zero = _spanning(lows, highs, bits)
        error = _written(block, scale[..., None], zero[..., None], bits).sub_(block)
        powers = error.square_() if norm == 2 else error.abs_().pow_(norm)
        if weights is not None:
            powers.mul_(weights)
        losses.append(powers.sum(-1))
        scales.append(scale)
        zeros.append(zero)
    # A grid beyond fp16 has no finite loss.
    choice = torch.cat(losses).nan_to_num(nan=torch.inf).argmin(0, keepdim=True)
    scale, zero = (torch.cat(each).gather(0, choice)[0] for each in (scales, zeros))
    if not bool(scale.isfinite().all()):
        raise OverflowError("a scale of the block is not finite in fp16")
    return ZeroPointGrid(scale, zero, bits)


def _spanning(low: Tensor, high: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid from ``low`` to ``high``, rounded to what is stored."""
    if bits > 1:
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = ((high - low) / (2**bits - 1)).half().float()
    parts = zero_parts(bits)
    zero = (-low / torch.where(scale > 0, scale, 1.0) * parts).round()
    return scale, zero.clamp(0, highest_zero(bits)) / parts


def _codes(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest codes, clamped to the grid; 0 where a scale is."""
    live = scale > 0
    steps = values / torch.where(live, scale, 1.0) + zero
    return steps.round_().clamp_(0, 2**bits - 1).mul_(live)


def _written(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Nearest levels; the difference and the product are exact in fp32."""
    return _codes(values, scale, zero, bits).sub_(zero).mul_(scale)


def _row_costs(error: Tensor, metric: Tensor) -> Tensor:
    """``f64[n]``: E M E^T of each row."""
    return ((error @ metric) * error).sum(1)
