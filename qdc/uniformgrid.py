"""The uniform codec: codes on one grid of equal steps for each row and group of columns.

``docs/format.md`` specifies it.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import pad

from qdc.codec import Codec, Tensors
from qdc.ir.types import ValueType
from qdc.numerics.uniform import Uniform, dense_uniform, pack_codes, unpack_codes


class UniformGrid(Codec):
    """W = scale * code + minimum, one scale and minimum for each row and group of columns."""

    name: ClassVar[str] = "uniform"

    group: int = Field(gt=0, multiple_of=8, le=1 << 16)
    bits: Literal[1, 2, 4, 8]

    @staticmethod
    def working(grids: Sequence[Uniform], group: int) -> dict[str, Tensor]:
        """Working tensors of grids that stand side by side, the last one padded to ``group``."""
        codes = [pad(grid.codes, (0, group - grid.codes.shape[1])) for grid in grids]
        return {
            "codes": torch.stack(codes, dim=1),
            "scale": torch.stack([grid.scale for grid in grids], dim=1).half(),
            "minimum": torch.stack([grid.minimum for grid in grids], dim=1).half(),
        }

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def payload_bits(self) -> int:
        """Bits of the codes."""
        return self.rows * self.columns * self.bits

    def specification(self) -> dict[str, ValueType]:
        """Codes, scales, minima."""
        rows, groups = self.rows, self.groups
        return {
            "codes": ValueType(dtype="u8", shape=(rows, groups, self.group * self.bits // 8)),
            "scale": ValueType(dtype="f16", shape=(rows, groups)),
            "minimum": ValueType(dtype="f16", shape=(rows, groups)),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes to bit fields, lowest bits first."""
        return {**working, "codes": pack_codes(working["codes"], self.bits).contiguous()}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bit fields to codes."""
        return {**stored, "codes": unpack_codes(stored["codes"], self.bits, self.group)}

    def dense(self, working: Tensors) -> Tensor:
        """``scale * code + minimum`` in fp32, the padding cut off."""
        grid = Uniform(
            working["codes"].flatten(0, 1),
            working["scale"].flatten().float(),
            working["minimum"].flatten().float(),
        )
        return dense_uniform(grid).reshape(self.rows, -1)[:, : self.columns].contiguous()
