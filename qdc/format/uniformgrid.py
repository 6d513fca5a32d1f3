"""The uniform codec: codes on one grid of equal steps for each row and group of columns.

``docs/format.md`` specifies it.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor
from torch.nn.functional import pad

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxeduniform import RelaxedUniform
from qdc.format.rescaleduniform import RescaledUniform
from qdc.ir.types import ValueType
from qdc.numerics.integergrid import Scales, shortened
from qdc.numerics.uniform import (
    Uniform,
    Zero,
    dense_uniform,
    pack_codes,
    unpack_codes,
)


class UniformGrid(Codec):
    """W = scale * code + minimum, one scale and minimum for each row and group of columns.

    With ``zero="packed"`` the minimum is -scale * zero, and zero is stored in as many bits as a
    code. All products and sums of that form are exact in fp32.
    """

    name: ClassVar[str] = "uniform"
    by_rows: ClassVar[tuple[str, ...]] = ("codes", "scale", "minimum", "zero")

    group: int = Field(gt=0, multiple_of=8, le=1 << 16)
    bits: Literal[1, 2, 4, 8]
    zero: Zero = "float"
    """How the place of a grid is stored: an fp16 minimum, or the code that stands for 0."""
    scales: Scales = "f16"
    """What scales are: numbers of fp16, or such as are numbers of bf16 too; stored in fp16."""

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what says nothing, as artifacts before these fields did."""
        data: dict[str, Any] = dump(self)
        silent = {("zero", "float"), ("scales", "f16")}
        return {k: v for k, v in data.items() if (k, v) not in silent}

    def check(self, stored: Tensors, layer: str) -> None:
        """As every codec, and that the scales are what they are said to be."""
        super().check(stored, layer)
        scale = stored["scale"].float()
        if not torch.equal(shortened(scale, self.scales), scale):
            raise InvalidArtifact("scale holds numbers that are none of bf16", where=[layer])

    @staticmethod
    def working(grids: Sequence[Uniform], group: int, zero: Zero = "float") -> dict[str, Tensor]:
        """Working tensors of grids that stand side by side, the last one padded to ``group``.

        Returns:
            ``codes`` u8[rows, G, group], ``scale`` f16[rows, G], and ``minimum`` f16[rows, G] or
            ``zero`` u8[rows, G].
        """
        codes = [pad(grid.codes, (0, group - grid.codes.shape[1])) for grid in grids]
        scale = torch.stack([grid.scale for grid in grids], dim=1)
        minimum = torch.stack([grid.minimum for grid in grids], dim=1)
        found = {"codes": torch.stack(codes, dim=1), "scale": scale.half()}
        if zero == "float":
            return {**found, "minimum": minimum.half()}
        steps = -minimum / torch.where(scale > 0, scale, 1.0)
        return {**found, "zero": steps.round().to(torch.uint8)}

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def payload_bits(self) -> int:
        """Bits of the codes."""
        return self.rows * self.columns * self.bits

    @property
    def working_bytes(self) -> int:
        """A byte for each code, the padding included; a scale and a place for each grid."""
        place = 2 if self.zero == "float" else 1
        return self.rows * self.groups * (self.group + 2 + place)

    def specification(self) -> dict[str, ValueType]:
        """Codes, scales, minima or zero points."""
        rows, groups = self.rows, self.groups
        found = {
            "codes": ValueType(dtype="u8", shape=(rows, groups, self.group * self.bits // 8)),
            "scale": ValueType(dtype="f16", shape=(rows, groups)),
        }
        if self.zero == "float":
            return {**found, "minimum": ValueType(dtype="f16", shape=(rows, groups))}
        return {**found, "zero": ValueType(dtype="u8", shape=(rows, -(-groups * self.bits // 8)))}

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes and zero points to bit fields, lowest bits first."""
        fields = {s: pack_codes(working[s], self.bits).contiguous() for s in self._fields}
        return {**working, **fields}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bit fields to codes and zero points."""
        counts = {"codes": self.group, "zero": self.groups}
        fields = {s: unpack_codes(stored[s], self.bits, counts[s]) for s in self._fields}
        return {**stored, **fields}

    def dense(self, working: Tensors) -> Tensor:
        """``scale * code + minimum`` in fp32, the padding cut off."""
        grid = Uniform(
            working["codes"].flatten(0, 1),
            working["scale"].flatten().float(),
            self.minima(working).flatten(),
        )
        return dense_uniform(grid).reshape(self.rows, -1)[:, : self.columns].contiguous()

    def minima(self, working: Tensors) -> Tensor:
        """Value of code 0 of each grid, ``f32[rows, G]``."""
        if self.zero == "float":
            return working["minimum"].float()
        return 0 - working["scale"].float() * working["zero"]

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedUniform:
        """Latent weights, scales and minima that start at the working tensors."""
        return RelaxedUniform(working, weight, self.bits, self.scales)

    def rescaling(self) -> RescaledUniform:
        """Scales and minima; packed zero points are integers and stay."""
        return RescaledUniform(self.dense, self.scales)

    def text(self) -> str:
        """``8 groups of 64   2 bits``, for the annotations of layers stored so."""
        zero = "" if self.zero == "float" else "   packed zero points"
        short = "" if self.scales == "f16" else "   scales of bf16"
        return f"{self.groups} groups of {self.group}   {self.bits} bits{zero}{short}"

    @property
    def _fields(self) -> tuple[str, ...]:
        return ("codes",) if self.zero == "float" else ("codes", "zero")
