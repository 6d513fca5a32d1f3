"""The bit-plane codec: planes of {0, 1} with free coefficients for each row and group of columns.

Rows stand on the first dimension of every stored tensor and groups on the last, so that slicing
rows, slicing columns at group boundaries, and joining layers along the rows are plain ``narrow``
and ``cat`` calls. ``docs/format.md`` specifies it.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedplanes import RelaxedPlanes
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.blocks import block_slices
from qdc.numerics.fields import pack_codes, unpack_codes
from qdc.numerics.planegrid import PlaneGrid

MOST_PLANES = 4


def pack_planes(codes: Tensor, planes: int) -> Tensor:
    """Bits of codes, u8[rows, columns], plane by plane: u8[rows, planes, ceil(columns / 8)]."""
    return pack_codes(torch.stack([codes >> k & 1 for k in range(planes)], dim=1), 1)


def unpack_planes(packed: Tensor, columns: int) -> Tensor:
    """Undo ``pack_planes``; the padding bits behind the last column are dropped unread."""
    bits = unpack_codes(packed, 1, columns)
    codes = bits[:, 0].clone()
    for k in range(1, bits.shape[1]):
        codes |= bits[:, k] << k
    return codes


class BitPlanes(Codec):
    """W = offset + sum over k of coefficient_k * bit_k, for each row and group of columns."""

    name: ClassVar[str] = "bit-planes"
    by_rows: ClassVar[tuple[str, ...]] = ("planes", "coefficient", "offset")

    group: int = Field(gt=0, multiple_of=8, le=1 << 16)
    planes: int = Field(ge=1, le=MOST_PLANES)
    offset: bool
    """Whether each row and group stores the value of a weight without a bit; it is 0 otherwise."""

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def payload_bits(self) -> int:
        """One bit for each weight and plane."""
        return self.rows * self.columns * self.planes

    @property
    def working_bytes(self) -> int:
        """A byte for each code, and fp16 numbers for each row and group."""
        return self.rows * (self.columns + 2 * self.groups * (self.planes + self.offset))

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The groups."""
        return block_slices(self.columns, self.group)

    def specification(self) -> dict[str, ValueType]:
        """Planes over the whole row, coefficients, and offsets if there are."""
        rows, planes, groups = self.rows, self.planes, self.groups
        found = {
            "planes": ValueType(dtype="u8", shape=(rows, planes, -(-self.columns // 8))),
            "coefficient": ValueType(dtype="f16", shape=(rows, planes, groups)),
        }
        if self.offset:
            found["offset"] = ValueType(dtype="f16", shape=(rows, groups))
        return found

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes to planes; the numbers as they are."""
        rest = {suffix: tensor for suffix, tensor in working.items() if suffix != "codes"}
        return {"planes": pack_planes(working["codes"], self.planes), **rest}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Planes to codes."""
        rest = {suffix: tensor for suffix, tensor in stored.items() if suffix != "planes"}
        return {"codes": unpack_planes(stored["planes"], self.columns), **rest}

    def dense(self, working: Tensors) -> Tensor:
        """The offset plus the coefficients of the bits that are set, in fp32, in ascending k."""
        total = torch.zeros(self.rows, self.columns, device=working["codes"].device)
        if self.offset:
            total += self._over_columns(working["offset"])
        for k in range(self.planes):
            total += self._over_columns(working["coefficient"][:, k]) * (working["codes"] >> k & 1)
        return total

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedPlanes:
        """Latent weights, coefficients and offsets that start at the working tensors."""
        return RelaxedPlanes(working, weight, self.group)

    def rescaling(self) -> NamedScales:
        """Coefficients and offsets."""
        return NamedScales(self.dense, ("coefficient", "offset"))

    def text(self) -> str:
        """``4 groups of 128   2 planes and an offset``, for the annotations of such layers."""
        planes = "1 plane" if self.planes == 1 else f"{self.planes} planes"
        return f"{self.groups} groups of {self.group}   {planes}{' and an offset' * self.offset}"

    @staticmethod
    def working(grids: Sequence[PlaneGrid], dense: Tensor, group: int) -> dict[str, Tensor]:
        """Working tensors of groups that stand side by side.

        Args:
            grids: left to right, each of ``group`` columns, the last of the rest.
            dense: f32[rows, columns], on their levels.
            group: columns of a group.

        Returns:
            ``codes`` u8[rows, columns], ``coefficient`` f16[rows, K, G], and with an offset
            ``offset`` f16[rows, G].
        """
        parts = zip(grids, torch.split(dense, group, dim=1), strict=True)
        found = {"codes": torch.cat([grid.encode(part) for grid, part in parts], dim=1)}
        numbers = [grid.coefficients for grid in grids]
        found["coefficient"] = torch.stack([each.planes for each in numbers], dim=2).half()
        offsets = [each.offset for each in numbers if each.offset is not None]
        if offsets:
            found["offset"] = torch.stack(offsets, dim=1).half()
        return found

    def _over_columns(self, numbers: Tensor) -> Tensor:
        """Numbers of groups, f16[rows, G], repeated over their columns, f32[rows, columns]."""
        width = min(self.group, self.columns)  # a group wider than the layer is not written out
        return numbers.float().repeat_interleave(width, dim=1)[:, : self.columns]
