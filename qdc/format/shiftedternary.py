"""The codec of ternary codes with a scale and a shift for each row and group of columns.

``docs/format.md`` specifies it.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedternary import RelaxedTernary
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.blocks import block_slices
from qdc.numerics.trits import TRITS, pack_trits, unpack_trits

SHORT_COLUMNS = 1 << 15
"""Most columns whose permutation is stored in 16 bits a column."""


class ShiftedTernary(Codec):
    """W = scale * code + shift. Five codes make a byte; scale and shift are fp16."""

    name: ClassVar[str] = "shifted-ternary"
    by_rows: ClassVar[tuple[str, ...]] = ("codes", "scale", "shift")

    group: int = Field(gt=0, le=1 << 16)
    """Columns that share a scale and a shift in each row."""
    reordered: bool = False
    """Whether codes and groups stand in an order of the columns that is stored with them."""

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return -(-self.columns // self.group)

    @property
    def payload_bits(self) -> int:
        """A fifth of a byte for each code."""
        return -(-8 * self.rows * self.columns // TRITS)

    @property
    def working_bytes(self) -> int:
        """A byte for each code; scales, shifts and the permutation as they are stored."""
        return self.nbytes + self.rows * (self.columns - -(-self.columns // TRITS))

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The groups; where they are no neighbours in the layer, blocks of 128 columns."""
        if self.reordered:
            return block_slices(self.columns)
        return block_slices(self.columns, self.group)

    def specification(self) -> dict[str, ValueType]:
        """Codes, each row on whole bytes, scales and shifts, and the order of the columns."""
        rows, groups = self.rows, self.groups
        found = {
            "codes": ValueType(dtype="u8", shape=(rows, -(-self.columns // TRITS))),
            "scale": ValueType(dtype="f16", shape=(rows, groups)),
            "shift": ValueType(dtype="f16", shape=(rows, groups)),
        }
        if self.reordered:
            dtype = "i16" if self.columns <= SHORT_COLUMNS else "i32"
            found["permutation"] = ValueType(dtype=dtype, shape=(self.columns,))
        return found

    def working(self, codes: Tensor, scale: Tensor, shift: Tensor, order: Tensor | None) -> Tensors:
        """Working tensors of a fitted layer.

        Args:
            codes: f[rows, columns], -1, 0 or +1, in the stored order.
            scale: f[rows, groups].
            shift: f[rows, groups].
            order: i64[columns], which column stands at each place; None if all stand in their own.

        Returns:
            ``codes`` i8[rows, columns], ``scale`` and ``shift`` f16[rows, groups], and with an
            order ``permutation``, i16 or i32 [columns].
        """
        found = {"codes": codes.to(torch.int8), "scale": scale.half(), "shift": shift.half()}
        if order is not None:
            short = self.columns <= SHORT_COLUMNS
            found["permutation"] = order.to(torch.int16 if short else torch.int32)
        return found

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes to bytes; all else is stored as it is."""
        return {**working, "codes": pack_trits(working["codes"])}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bytes to codes."""
        return {**stored, "codes": unpack_trits(stored["codes"], self.columns)}

    def dense(self, working: Tensors) -> Tensor:
        """``scale * code + shift`` in fp32, each column where it belongs."""
        codes = working["codes"]
        group = torch.arange(self.columns, device=codes.device) // self.group
        scale, shift = (working[suffix].float()[:, group] for suffix in ("scale", "shift"))
        levels = scale * codes + shift
        if not self.reordered:
            return levels
        result = torch.empty_like(levels)
        result[:, working["permutation"].long()] = levels
        return result

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification, and prove that every column has one place."""
        super().check(stored, layer)
        if self.reordered:
            places = stored["permutation"].long().sort().values
            if not torch.equal(places, torch.arange(self.columns, device=places.device)):
                raise InvalidArtifact(
                    f"permutation does not hold each column of 0..{self.columns - 1} once",
                    where=[layer],
                )

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedTernary:
        """Latent weights, scales and shifts that start at the working tensors."""
        return RelaxedTernary(working, weight, self.group)

    def rescaling(self) -> NamedScales:
        """Scales and shifts."""
        return NamedScales(self.dense, ("scale", "shift"), ("scale",))

    def text(self) -> str:
        """``4 groups of 128   1.6 bits``, for the annotations of layers stored so."""
        order = "   reordered" if self.reordered else ""
        return f"{self.groups} groups of {self.group}   {super().text()}{order}"
