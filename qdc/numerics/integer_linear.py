"""A linear of whole numbers: quantized inputs times the codes of a uniform grid, added up exactly.

What is rounded are the scales' products alone. Columns are cut into segments in which neither an
input's scale nor a weight's changes; a segment's sum of products is a whole number.
"""

import math
from typing import Final, NamedTuple, Self

import torch
from torch import Tensor

from qdc.numerics.integer_product import LONGEST, integer_product
from qdc.numerics.rowquantizer import RowCodes

MIDDLE: Final = 128
"""What is taken off codes of 8 bits, so that they are numbers with a sign."""
NARROW: Final = 1 << 15
"""Columns up to which sums of products of corrected codes, 255 each, fit 32 bits."""


class IntegerWeight(NamedTuple):
    """A weight on uniform grids: scale * code + minimum, or scale * (code - zero).

    Attributes:
        codes: i8[rows, columns], less ``offset``.
        offset: what is to be added to codes, 0 or 128.
        scale: f32[rows, groups].
        minimum: f32[rows, groups]; None where there are zero points.
        zero: i32[rows, groups]; None where there are minima.
        group: columns of a group.
    """

    codes: Tensor
    offset: int
    scale: Tensor
    minimum: Tensor | None
    zero: Tensor | None
    group: int

    @classmethod
    def of(
        cls, codes: Tensor, scale: Tensor, minimum: Tensor | None, zero: Tensor | None, group: int
    ) -> Self:
        """Take codes u8[rows, columns], and grids of any dtype."""
        offset = MIDDLE if bool((codes >= MIDDLE).any()) else 0
        return cls(
            (codes.to(torch.int16) - offset).to(torch.int8),
            offset,
            scale.float(),
            None if minimum is None else minimum.float(),
            None if zero is None else zero.to(torch.int32),
            group,
        )


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
        group: columns that share a scale of the inputs; 0 for all.
        weight: of [rows, columns].

    Returns:
        f32[m, rows].
    """
    columns = inputs.codes.shape[-1]
    width = segment_width(columns, group, weight.group)
    result: Tensor | None = None
    for start in range(0, columns, width):
        part = slice(start, min(start + width, columns))
        place = start // group if group else 0
        term = _segment(inputs, place, weight, part).mul_(inputs.scale[:, place, None])
        result = term if result is None else result.add_(term)
    assert result is not None, "a layer has columns"
    return result


def _segment(inputs: RowCodes, place: int, weight: IntegerWeight, part: slice) -> Tensor:
    """The term t of a segment, f32[m, rows]."""
    at = part.start // weight.group
    codes, weights = inputs.codes[:, part].contiguous(), weight.codes[:, part].contiguous()
    products = integer_product(codes, weights)
    if codes.shape[1] > NARROW:
        products = products.to(torch.int64)
    sums = codes.sum(1, dtype=torch.int32)[:, None]
    if weight.offset:
        products += weight.offset * sums
    if inputs.zero is not None:
        zero = inputs.zero[:, place, None].to(torch.int32)
        each = weights.sum(1, dtype=torch.int32) + weight.offset * codes.shape[1]
        products -= zero * each
        sums = sums - zero * codes.shape[1]
    scale = weight.scale[:, at]
    if weight.zero is not None:
        products -= sums * weight.zero[:, at]
        return products.float().mul_(scale)
    assert weight.minimum is not None, "a grid has minima or zero points"
    return products.float().mul_(scale).add_(weight.minimum[:, at] * sums.float())
