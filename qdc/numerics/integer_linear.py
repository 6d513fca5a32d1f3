"""A linear of whole numbers: quantized inputs times the codes of a uniform grid, added up exactly.

What is rounded are the scales' products alone. Columns are cut into segments in which neither an
input's scale nor a weight's changes; a segment's sum of products is a whole number.
"""

import math
from collections.abc import Iterator
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from qdc.numerics.integer_product import LONGEST, integer_product
from qdc.numerics.rowquantizer import RowCodes

MIDDLE: Final = 128
"""What is taken off codes of 8 bits, so that they are numbers with a sign."""
NARROW: Final = 1 << 15
"""Columns up to which sums of products of corrected codes, 255 each, fit 32 bits."""
NEAR: Final = 1 << 17
"""Sums that are held at a time, so that they stay near the processor."""


class IntegerWeight(NamedTuple):
    """A weight on uniform grids: scale * code + minimum, or scale * (code - zero).

    Attributes:
        codes: i8[rows * columns], segment by segment, each of them [rows, width]; less ``offset``,
            or less the zero point of their grid where all of these differences fit.
        sums: i32[segments, rows], those of ``codes``.
        offset: what is to be added to codes, 0 or 128.
        scale: f32[groups, rows].
        minimum: f32[groups, rows]; None where there are zero points.
        zero: i32[groups, rows]; None where there are minima, or ``codes`` are less them already.
        group: columns of a group of the weight.
        columns: of the layer.
        width: columns of a segment, the last one narrower.
    """

    codes: Tensor
    sums: Tensor
    offset: int
    scale: Tensor
    minimum: Tensor | None
    zero: Tensor | None
    group: int
    columns: int
    width: int

    @classmethod
    def of(
        cls,
        codes: Tensor,
        scale: Tensor,
        minimum: Tensor | None,
        zero: Tensor | None,
        group: int,
        input_group: int = 0,
    ) -> Self:
        """Lay a weight out.

        Args:
            codes: u8[rows, columns].
            scale: [rows, groups], of any dtype, as the next two.
            minimum: [rows, groups]; None where there are zero points.
            zero: [rows, groups]; None where there are minima.
            group: columns of a group of the weight.
            input_group: columns of inputs that share a scale; 0 for all.
        """
        columns = codes.shape[1]
        width = segment_width(columns, input_group, group)
        wide, offset = codes.to(torch.int16), 0
        if zero is not None:
            place = torch.arange(columns, device=codes.device) // group
            centred = wide - zero.to(torch.int16)[:, place]
            if int(centred.min()) >= -MIDDLE and int(centred.max()) < MIDDLE:
                wide, zero = centred, None
        if int(wide.max()) >= MIDDLE:
            offset = MIDDLE
            wide = wide - offset
        parts = [part.to(torch.int8).contiguous() for part in torch.split(wide, width, 1)]
        return cls(
            torch.cat([part.flatten() for part in parts]),
            torch.stack([part.sum(1, dtype=torch.int32) for part in parts]),
            offset,
            scale.float().T.contiguous(),
            None if minimum is None else minimum.float().T.contiguous(),
            None if zero is None else zero.to(torch.int32).T.contiguous(),
            group,
            columns,
            width,
        )

    @property
    def rows(self) -> int:
        """Outputs of the layer."""
        return self.scale.shape[1]

    def segments(self) -> Iterator[tuple[int, slice, Tensor]]:
        """Each segment's number, its columns, and its codes i8[rows, width]."""
        for number, start in enumerate(range(0, self.columns, self.width)):
            end = min(start + self.width, self.columns)
            flat = self.codes[start * self.rows : end * self.rows]
            yield number, slice(start, end), flat.view(self.rows, end - start)

    def dense(self) -> Tensor:
        """Write the weight out, f32[rows, columns]."""
        parts = []
        for _, part, codes in self.segments():
            at = part.start // self.group
            whole = codes.to(torch.int32) + self.offset
            if self.zero is not None:
                whole = whole - self.zero[at, :, None]
            written = whole.float() * self.scale[at, :, None]
            parts.append(written if self.minimum is None else written + self.minimum[at, :, None])
        return torch.cat(parts, 1)


def segment_width(columns: int, *groups: int) -> int:
    """Columns of a segment: the largest number that cuts no group, and does not pass a product.

    Args:
        columns: of the layer.
        groups: columns of a group of inputs, of weights; 0 for all of them.
    """
    cut = [group for group in groups if 0 < group < columns]
    width = math.gcd(*cut) if cut else columns
    return width if width <= LONGEST else math.gcd(width, LONGEST) if cut else LONGEST


def integer_linear(inputs: RowCodes, group: int, weight: IntegerWeight) -> Tensor:
    """Multiply quantized inputs by the transpose of a weight.

    For each segment of columns, in ascending order, with whole numbers D = sum (q - z) c and
    S = sum (q - z), q and z of the input, c of the weight:

        t = scale * f32(D) + minimum * f32(S), or scale * f32(D - zero * S)
        y = y + s * t                                         s the scale of the input

    Every operation on fp32 is rounded to nearest; y begins with the first term.

    Args:
        inputs: of [m, columns].
        group: columns that share a scale of the inputs, as the weight was laid out for; 0 for all.
        weight: of [rows, columns].

    Returns:
        f32[m, rows].
    """
    count = len(inputs.codes)
    result = torch.empty(count, weight.rows, device=inputs.codes.device)
    tile = max(64, NEAR // max(1, count)) if weight.width < weight.columns else weight.rows
    read = [_Segment.of(inputs, group, part) for _, part, _ in weight.segments()]
    for first in range(0, weight.rows, tile):
        rows = slice(first, first + tile)
        for number, part, codes in weight.segments():
            at = read[number]
            term = _term(at, weight, number, part.start // weight.group, codes[rows], rows)
            term.mul_(at.scale)
            if number:
                result[:, rows] += term
            else:
                result[:, rows] = term
    return result


class _Segment(NamedTuple):
    """What inputs are in one segment."""

    codes: Tensor
    """i8[m, width], contiguous."""
    sums: Tensor
    """i32[m, 1], of codes less their zero points."""
    scale: Tensor
    """f32[m, 1]."""
    zero: Tensor | None
    """i32[m, 1]; None for 0."""

    @classmethod
    def of(cls, inputs: RowCodes, group: int, part: slice) -> Self:
        place = part.start // group if group else 0
        codes = inputs.codes[:, part].contiguous()
        sums = codes.sum(1, dtype=torch.int32)[:, None]
        zero = None
        if inputs.zero is not None:
            zero = inputs.zero[:, place, None].to(torch.int32)
            sums = sums - zero * codes.shape[1]
        return cls(codes, sums, inputs.scale[:, place, None], zero)


def _term(
    read: _Segment, weight: IntegerWeight, number: int, at: int, codes: Tensor, rows: slice
) -> Tensor:
    """The term t of a segment for some rows of the weight, f32[m, n]."""
    products, sums = integer_product(read.codes, codes), read.sums
    if read.codes.shape[1] > NARROW:
        products, sums = products.to(torch.int64), sums.to(torch.int64)
    if read.zero is not None:
        products -= read.zero * weight.sums[number, rows]
    if weight.offset:
        products += weight.offset * sums
    if weight.zero is not None:
        products -= sums * weight.zero[at, rows]
    term = products.float().mul_(weight.scale[at, rows])
    if weight.minimum is not None:
        term.add_(weight.minimum[at, rows] * read.sums.float())
    return term
