"""The shared-table codec: planes of {0, 1}, and for each row and group a line of a common table.

``docs/format.md`` specifies it.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.bitplanes import MOST_PLANES, pack_planes, unpack_planes
from qdc.format.codec import Codec, Tensors
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.blocks import block_slices
from qdc.numerics.coefficienttable import CoefficientTable, TableGrid, joined

BYTE = 1 << 8
MOST_LINES = 1 << 16


class SharedTable(Codec):
    """W = sum over k of table[index, k] * bit_k, an index for each row and group of columns."""

    name: ClassVar[str] = "shared-table"
    by_rows: ClassVar[tuple[str, ...]] = ("planes", "index")

    group: int = Field(gt=0, multiple_of=8, le=1 << 16)
    planes: int = Field(ge=1, le=MOST_PLANES)
    offset: bool
    """Whether a line ends with the value of a weight without a bit; it is 0 otherwise."""
    lines: int = Field(ge=1, le=MOST_LINES)

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def index_bytes(self) -> int:
        """Bytes of an index: 1 as long as the table has at most 256 lines."""
        return 1 if self.lines <= BYTE else 2

    @property
    def payload_bits(self) -> int:
        """One bit for each weight and plane."""
        return self.rows * self.columns * self.planes

    @property
    def working_bytes(self) -> int:
        """A byte for each code, four for each index, and the table."""
        line = 2 * (self.planes + self.offset)
        return self.rows * (self.columns + 4 * self.groups) + line * self.lines

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The groups."""
        return block_slices(self.columns, self.group)

    def specification(self) -> dict[str, ValueType]:
        """Planes over the whole row, an index for each group, the table."""
        rows, planes = self.rows, self.planes
        return {
            "planes": ValueType(dtype="u8", shape=(rows, planes, -(-self.columns // 8))),
            "index": ValueType(dtype="u8", shape=(rows, self.groups, self.index_bytes)),
            "table": ValueType(dtype="f16", shape=(self.lines, planes + self.offset)),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes to planes, indices to bytes, the lowest first."""
        index = working["index"]
        low_to_high = [index >> (8 * place) & 255 for place in range(self.index_bytes)]
        return {
            "planes": pack_planes(working["codes"], self.planes),
            "index": torch.stack(low_to_high, dim=2).to(torch.uint8),
            "table": working["table"],
        }

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Planes to codes, bytes to indices."""
        return {
            "codes": unpack_planes(stored["planes"], self.columns),
            "index": _indices(stored["index"]),
            "table": stored["table"],
        }

    def dense(self, working: Tensors) -> Tensor:
        """The offset plus the coefficients of the bits that are set, in fp32, in ascending k."""
        lines = working["table"].float()[working["index"].long()]
        total = torch.zeros(self.rows, self.columns, device=lines.device)
        if self.offset:
            total += self._over_columns(lines[:, :, self.planes])
        for k in range(self.planes):
            total += self._over_columns(lines[:, :, k]) * (working["codes"] >> k & 1)
        return total

    def rescaling(self) -> NamedScales:
        """The lines of the table."""
        return NamedScales(self.dense, ("table",))

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification, and the indices with the size of the table."""
        super().check(stored, layer)
        highest = int(_indices(stored["index"]).max())
        if highest >= self.lines:
            raise InvalidArtifact(
                f"index holds {highest}, the table has {self.lines} lines", where=[layer]
            )

    def text(self) -> str:
        """``4 groups of 128   2 planes   table of 256``, for the annotations of such layers."""
        planes = "1 plane" if self.planes == 1 else f"{self.planes} planes"
        offset = " with offsets" if self.offset else ""
        return f"{self.groups} groups of {self.group}   {planes}   table of {self.lines}{offset}"

    @staticmethod
    def working(
        table: CoefficientTable, grids: Sequence[TableGrid], dense: Tensor, group: int
    ) -> dict[str, Tensor]:
        """Working tensors of groups that stand side by side.

        Args:
            table: of the layer.
            grids: left to right, each of ``group`` columns, the last of the rest.
            dense: f32[rows, columns], on their levels.
            group: columns of a group.

        Returns:
            ``codes`` u8[rows, columns], ``index`` i32[rows, G], and ``table`` f16[L, K], or
            f16[L, K + 1] with an offset.
        """
        parts = zip(grids, torch.split(dense, group, dim=1), strict=True)
        return {
            "codes": torch.cat([grid.encode(part) for grid, part in parts], dim=1),
            "index": torch.stack([grid.index for grid in grids], dim=1).to(torch.int32),
            "table": joined(table.lines).half(),
        }

    def _over_columns(self, numbers: Tensor) -> Tensor:
        """Numbers of groups, f32[rows, G], repeated over their columns, f32[rows, columns]."""
        width = min(self.group, self.columns)  # a group wider than the layer is not written out
        return numbers.repeat_interleave(width, dim=1)[:, : self.columns]


def _indices(stored: Tensor) -> Tensor:
    """Bytes, u8[rows, G, 1 or 2], as numbers, i32[rows, G]."""
    total = stored[..., 0].to(torch.int32)
    for place in range(1, stored.shape[-1]):
        total += stored[..., place].to(torch.int32) << (8 * place)
    return total
