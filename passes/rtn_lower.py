"""Round every weight to the nearest level of a uniform grid: the simplest lowering.

Source: the common asymmetric min-max grid, one scale and one minimum for each row and group. It
reads no statistics, so ``rtn-lower,pack`` compiles without calibration; with a moment at hand
(``stages(calibrate-mcs,rtn-lower),pack``) it also notes the output error.

    before   %h0.q = linear %x   w f16[64,512]
    after        @rtn  4 groups of 128   2 bits   output error 2.0e-01
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from qdc.codec import Codec, Lowered, Tensors
from qdc.ir.graph import Node
from qdc.ir.types import ValueType
from qdc.lowering import Lowering
from qdc.numerics.blocks import block_slices
from qdc.numerics.uniform import Uniform, dense_uniform, fit_uniform, pack_codes, unpack_codes
from qdc.passbase import Kinds
from qdc.pipeline.unit import Unit


class UniformGrid(Codec):
    """W = scale * code + minimum, one scale and minimum for each row and group of columns."""

    name: ClassVar[str] = "uniform"

    group: int = Field(gt=0, multiple_of=8, le=1 << 16)
    bits: Literal[1, 2, 4, 8]

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


class Rtn(Lowered):
    """A layer as codes on uniform grids."""

    tag: ClassVar[str] = "rtn"
    codec: UniformGrid

    def text(self) -> str:
        """``4 groups of 128   2 bits   output error 2.0e-01``."""
        codec = self.codec
        return f"{codec.groups} groups of {codec.group}   {codec.bits} bits{self.error_text()}"


class RtnLower(Lowering):
    """Round every weight to the nearest level of a uniform grid."""

    name: ClassVar[str] = "rtn-lower"
    provides: ClassVar[Kinds] = (Rtn,)

    bits: Literal[1, 2, 4, 8] = Field(default=2, description="bits of a code")
    group: int = Field(
        default=128, ge=8, le=1 << 16, multiple_of=8, description="columns of a grid"
    )

    def lower(self, unit: Unit, node: Node) -> tuple[Rtn, Tensors]:
        """Fit the grid of every row and group, then round."""
        weight = unit.weight(node)
        codec = UniformGrid(rows=node.rows, columns=node.columns, group=self.group, bits=self.bits)
        slices = block_slices(node.columns, self.group)
        grids = [fit_uniform(weight[:, part], self.bits) for part in slices]
        tensors = {
            "codes": torch.stack([_padded(grid.codes, self.group) for grid in grids], dim=1),
            "scale": torch.stack([grid.scale for grid in grids], dim=1).half(),
            "minimum": torch.stack([grid.minimum for grid in grids], dim=1).half(),
        }
        return Rtn(codec=codec), tensors


def _padded(codes: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(codes, (0, width - codes.shape[1]))
