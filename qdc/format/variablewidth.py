"""The variable-width codec: uniform codes whose width differs from one column group to the next.

Codes are stored as bit planes, so a group of one bit takes half of one of two: nothing is padded
to a common width. ``docs/format.md`` specifies it.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedwidth import RelaxedWidth
from qdc.format.rescaling import NamedScales
from qdc.ir.annotations import runs
from qdc.ir.types import ValueType
from qdc.numerics.blocks import block_slices, block_widths
from qdc.numerics.fields import pack_codes, unpack_codes
from qdc.numerics.zeropoint import WIDEST, ZeroPointGrid, highest_zero, zero_parts

ZERO_BITS, TAG_BITS = 4, 2


class VariableWidth(Codec):
    """W = scale * (code - zero), one scale and zero point for each row and group of columns.

    A zero point counts steps, or sixteenths of one in groups whose codes have one bit.
    """

    name: ClassVar[str] = "variable-width"
    by_rows: ClassVar[tuple[str, ...]] = ("codes", "scale", "zero")

    group: int = Field(gt=0, multiple_of=8, le=1 << 16)
    bits: tuple[int, ...] = Field(min_length=1)
    """Bits of a code in each group, left to right."""

    @field_validator("bits")
    @classmethod
    def _in_range(cls, bits: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= width <= WIDEST for width in bits):
            raise ValueError(f"the widths of codes must lie in 1..{WIDEST}")
        return bits

    @model_validator(mode="after")
    def _tiles(self) -> "VariableWidth":
        groups = -(-self.columns // self.group)
        if len(self.bits) != groups:
            raise ValueError(f"{len(self.bits)} widths for {groups} groups")
        return self

    @staticmethod
    def working(grids: Sequence[ZeroPointGrid], codes: Sequence[Tensor]) -> dict[str, Tensor]:
        """Working tensors of grids that stand side by side.

        Args:
            grids: of the groups.
            codes: u8[rows, width] of each.

        Returns:
            ``codes`` u8[rows, columns], ``scale`` f16[rows, G], ``zero`` u8[rows, G].
        """
        return {
            "codes": torch.cat(list(codes), dim=1),
            "scale": torch.stack([grid.scale for grid in grids], dim=1).half(),
            "zero": torch.stack([grid.zero_code() for grid in grids], dim=1),
        }

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The groups that have a width each."""
        return block_slices(self.columns, self.group)

    @property
    def payload_bits(self) -> int:
        """Bits of the codes; the padding of a ragged last group's planes is not counted."""
        return self.rows * sum(b * w for b, w in zip(self.bits, self._widths, strict=True))

    @property
    def working_bytes(self) -> int:
        """A byte for each code, three for each grid."""
        return self.rows * (self.columns + 3 * len(self.bits))

    @property
    def _widths(self) -> tuple[int, ...]:
        return block_widths(self.columns, self.group)

    @property
    def row_bytes(self) -> int:
        """Bytes of the planes of one row."""
        return sum(b * -(-w // 8) for b, w in zip(self.bits, self._widths, strict=True))

    def specification(self) -> dict[str, ValueType]:
        """Planes of the codes, scales, zero points, tags of the widths."""
        rows, groups = self.rows, len(self.bits)
        return {
            "codes": ValueType(dtype="u8", shape=(rows, self.row_bytes)),
            "scale": ValueType(dtype="f16", shape=(rows, groups)),
            "zero": ValueType(dtype="u8", shape=(rows, -(-groups * ZERO_BITS // 8))),
            "widths": ValueType(dtype="u8", shape=(-(-groups * TAG_BITS // 8),)),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes to planes, lowest bit first, group after group."""
        planes = [
            pack_codes(working["codes"][:, part] >> bit & 1, 1)
            for part, bits in zip(self.column_blocks, self.bits, strict=True)
            for bit in range(bits)
        ]
        return {
            "codes": torch.cat(planes, dim=1),
            "scale": working["scale"].contiguous(),
            "zero": pack_codes(working["zero"], ZERO_BITS).contiguous(),
            "widths": pack_codes(self._tags(), TAG_BITS),
        }

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Planes to codes."""
        groups, first = [], 0
        for bits, width in zip(self.bits, self._widths, strict=True):
            count = -(-width // 8)
            packed = stored["codes"][:, first : first + bits * count]
            planes = unpack_codes(packed.reshape(self.rows, bits, count), 1, width)
            place = torch.arange(bits, dtype=torch.uint8, device=planes.device)[:, None]
            groups.append((planes << place).sum(1, dtype=torch.uint8))
            first += bits * count
        return {
            "codes": torch.cat(groups, dim=1),
            "scale": stored["scale"],
            "zero": unpack_codes(stored["zero"], ZERO_BITS, len(self.bits)),
        }

    def dense(self, working: Tensors) -> Tensor:
        """``scale * (code - zero)`` in fp32, exact: 5 and 11 bits."""
        zero = self._spread(working["zero"].float() / self._parts(working["zero"].device))
        return (working["codes"].float() - zero) * self._spread(working["scale"].float())

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedWidth:
        """Latent weights and scales that start at the working tensors."""
        device = working["zero"].device
        top = torch.tensor([2.0**bits - 1 for bits in self.bits], device=device)
        return RelaxedWidth(working, weight, self.group, self._parts(device), top)

    def rescaling(self) -> NamedScales:
        """Scales; zero points are integers and stay."""
        return NamedScales(self.dense, ("scale",), ("scale",))

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification, the tags with the configuration's widths.

        Also that every zero point stands on its grid.
        """
        super().check(stored, layer)
        groups = len(self.bits)
        if not torch.equal(unpack_codes(stored["widths"], TAG_BITS, groups).cpu(), self._tags()):
            raise InvalidArtifact(
                "the stored widths are not those of the configuration", where=[layer]
            )
        highest = torch.tensor([highest_zero(bits) for bits in self.bits])
        zero = unpack_codes(stored["zero"], ZERO_BITS, groups)
        if bool((zero > highest.to(zero.device)).any()):
            raise InvalidArtifact("a zero point is above its grid", where=[layer])
        if bool((stored["scale"] < 0).any()):
            raise InvalidArtifact("a scale is negative", where=[layer])

    def text(self) -> str:
        """``4 groups of 128   2 1 3 2 bits``, for the annotations of layers stored so."""
        return f"{len(self.bits)} groups of {self.group}   {runs(self.bits)} bits"

    def _tags(self) -> Tensor:
        return torch.tensor([bits - 1 for bits in self.bits], dtype=torch.uint8)

    def _parts(self, device: torch.device) -> Tensor:
        """Parts of a step that the zero points of each group count, ``i64[G]``."""
        return torch.tensor([zero_parts(bits) for bits in self.bits], device=device)

    def _spread(self, grids: Tensor) -> Tensor:
        """One number a grid, ``f32[rows, G]``, to all columns."""
        width = min(self.group, self.columns)  # a group wider than the layer is not written out
        return grids.repeat_interleave(width, 1)[:, : self.columns]
