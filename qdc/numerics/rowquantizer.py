"""Integer codes of the rows of a matrix: activations and caches, quantized as they come.

A row is a token. All of it, or each group of its columns, has one step; a code times the step is
the value. Symmetric codes go from -q to q with q = 2^(bits - 1) - 1, so that a product with them
needs no correction; asymmetric ones use all 2^bits levels and say which of them means 0. Scales are
rounded to their dtype before codes are taken, so what is stored decodes to what was computed with.
Source: related-systems.md 4 (clip ratio, DLLMQuant) and dynamic quantization by tokens as in
SmoothQuant (arXiv 2211.10438) and QuaRot (arXiv 2404.00456).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import torch
from torch import Tensor

from qdc.numerics.fields import pack_codes, unpack_codes

Bits = Literal[4, 8]
Zeros = Literal["symmetric", "asymmetric"]
"""Whether 0 is the middle of the codes, or stands where the range of the values has it."""
Scales = Literal["f16", "f32"]
DTYPES: Final = {"f16": torch.float16, "f32": torch.float32}


class RowCodes(NamedTuple):
    """Rows on integer grids: value ~ scale * (code - zero).

    Attributes:
        codes: i8[..., width].
        scale: f32[..., groups], >= 0, rounded to its stored dtype; NaN for a group that held a
            number that is not finite, or whose scale the dtype does not reach.
        zero: i8[..., groups], the code that means 0; None where that is 0.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None


@dataclass(frozen=True)
class RowQuantizer:
    """How rows become codes.

    Attributes:
        bits: of a code, 4 or 8.
        group: columns that share a scale, from the left, the last group narrower; 0 for whole rows.
        zeros: symmetric or asymmetric.
        scales: dtype that scales are rounded to.
    """

    bits: Bits = 8
    group: int = 0
    zeros: Zeros = "symmetric"
    scales: Scales = "f32"

    def __post_init__(self) -> None:
        """Refuse what is no quantizer. Raises ``ValueError``."""
        if self.bits not in (4, 8):
            raise ValueError(f"codes of rows have 4 or 8 bits, not {self.bits}")
        if self.group < 0:
            raise ValueError(f"a group has at least one column, not {self.group}")
        if self.zeros not in ("symmetric", "asymmetric") or self.scales not in DTYPES:
            raise ValueError(f"no grid of rows is {self.zeros} with scales of {self.scales}")

    @property
    def highest(self) -> int:
        """The largest code: 127 or 7."""
        return (1 << (self.bits - 1)) - 1

    @property
    def lowest(self) -> int:
        """The smallest code: -127 or -7, and one less where zeros are asymmetric."""
        return -self.highest - (self.zeros == "asymmetric")

    def groups(self, width: int) -> int:
        """Scales of a row of ``width`` columns."""
        return -(-width // self.group) if self.group else 1

    def grids(self, values: Tensor, clip: Tensor | float = 1.0) -> tuple[Tensor, Tensor | None]:
        """Find the grids of rows as they are: dynamic ones.

        Args:
            values: f32[..., width].
            clip: share of the range of a group that codes span; f32[..., 1] for one a row.

        Returns:
            Scale f32[..., groups] and zero i8[..., groups] or None, as in ``RowCodes``.
        """
        parts = self._parts(values)
        if self.zeros == "symmetric":
            peak = parts.abs().amax(-1)
            return self._rounded(peak * clip / self.highest), None
        # The padding of a ragged group is 0, which a range always holds: 0 is a level.
        low, high = parts.amin(-1).clamp(max=0), parts.amax(-1).clamp(min=0)
        return self.spanning(low * clip, high * clip)

    def spanning(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The asymmetric grids from ``low`` <= 0 to ``high`` >= 0, f32[..., groups] each."""
        scale = self._rounded((high - low) / (self.highest - self.lowest))
        zero = (self.lowest - low / _divisor(scale)).nan_to_num(0, 0, 0).round()
        return scale, zero.clamp(self.lowest, self.highest).to(torch.int8)

    def quantize(self, values: Tensor, clip: Tensor | float = 1.0) -> RowCodes:
        """Quantize rows on grids of their own; the arguments are those of ``grids``."""
        return self._coded(values, *self.grids(values, clip))

    def quantize_on(self, values: Tensor, scale: Tensor, zero: Tensor | None = None) -> RowCodes:
        """Quantize rows on given grids, static ones.

        Args:
            values: f32[..., width].
            scale: f32[..., groups], or of fewer leading dimensions.
            zero: i8 of the same shape; None for 0.

        Returns:
            Codes; the scale of a group that holds a number that is not finite is NaN.
        """
        finite = self._parts(values).isfinite().all(-1)
        return self._coded(values, torch.where(finite, scale, torch.nan), zero)

    def _coded(self, values: Tensor, scale: Tensor, zero: Tensor | None) -> RowCodes:
        """Nearest codes, ties to even, clamped; what means 0 where a scale is 0 or NaN."""
        live = (scale > 0)[..., None]
        steps = (self._parts(values) / _divisor(scale)[..., None]).round_()
        middle = 0 if zero is None else zero.to(steps.dtype)[..., None]
        codes = torch.where(live, steps.add_(middle).clamp_(self.lowest, self.highest), middle)
        whole = codes.flatten(-2)[..., : values.shape[-1]].to(torch.int8)
        return RowCodes(whole, scale, None if zero is None else zero.expand(scale.shape))

    def dequantize(self, rows: RowCodes) -> Tensor:
        """Write rows out: scale * (code - zero) in fp32.

        The difference is a whole number of at most 8 bits and a sign, so with scales of fp16 the
        product is exact, and with fp32 it is rounded once.

        Returns:
            f32[..., width].
        """
        width = rows.codes.shape[-1]
        whole = rows.codes.float() if rows.zero is None else self.centred(rows).float()
        return whole * self.spread(rows.scale, width)

    def centred(self, rows: RowCodes) -> Tensor:
        """The whole numbers code - zero, i16[..., width]."""
        codes = rows.codes.to(torch.int16)
        if rows.zero is None:
            return codes
        return codes - self.spread(rows.zero, codes.shape[-1]).to(torch.int16)

    def round(self, values: Tensor, clip: Tensor | float = 1.0) -> Tensor:
        """What a row is once it was quantized and written out, f32[..., width]."""
        return self.dequantize(self.quantize(values, clip))

    def spread(self, each: Tensor, width: int) -> Tensor:
        """What groups have, [..., groups], for each of their columns, [..., width]."""
        if not self.group or self.group >= width:
            return each
        return each.repeat_interleave(self.group, -1)[..., :width]

    def pack(self, codes: Tensor) -> Tensor:
        """Pack codes i8[..., width] as fields without sign, u8[..., ceil(width * bits / 8)].

        A field is the code plus 2^(bits - 1); two codes of 4 bits take a byte, the first one its
        low half.
        """
        return pack_codes(
            (codes.to(torch.int16) + (1 << (self.bits - 1))).to(torch.uint8), self.bits
        )

    def unpack(self, packed: Tensor, width: int) -> Tensor:
        """Undo ``pack``: i8[..., width]."""
        fields = unpack_codes(packed, self.bits, width).to(torch.int16)
        return (fields - (1 << (self.bits - 1))).to(torch.int8)

    def row_bytes(self, width: int) -> int:
        """Bytes that a row takes where it is stored: packed codes, scales, and zero points."""
        scale = DTYPES[self.scales].itemsize + (self.zeros == "asymmetric")
        return -(-width * self.bits // 8) + self.groups(width) * scale

    def _parts(self, values: Tensor) -> Tensor:
        """Columns by groups, f32[..., groups, g], the last one filled up with zeros."""
        width = values.shape[-1]
        group = self.group if 0 < self.group < width else width
        padded = torch.nn.functional.pad(values, (0, -width % max(group, 1)))
        return padded.reshape(*values.shape[:-1], -(-width // max(group, 1)), group)

    def _rounded(self, scale: Tensor) -> Tensor:
        stored = scale.to(DTYPES[self.scales]).to(torch.float32)
        return torch.where(stored.isfinite(), stored, torch.nan)


def best_clip(
    grid: tuple[float, ...], loss: Callable[[float], float]
) -> tuple[float, dict[float, float]]:
    """Find the clip ratio of least loss; the larger one of equals, and 1 where none is finite.

    Args:
        grid: ratios to try.
        loss: of one of them.

    Returns:
        The ratio, and every ratio's loss.
    """
    losses = {clip: loss(clip) for clip in sorted(grid, reverse=True)}
    found = min(
        losses, key=lambda clip: losses[clip] if losses[clip] == losses[clip] else float("inf")
    )
    return found, losses


def _divisor(scale: Tensor) -> Tensor:
    """A scale to divide by: 1 in the place of 0."""
    return torch.where(scale > 0, scale, 1.0)
