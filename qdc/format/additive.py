"""The additive codec: vectors of weights as sums of codebook entries, times a row scale.

``docs/format.md`` specifies it.
"""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedadditive import RelaxedAdditive
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.additive import Additive
from qdc.numerics.fields import pack_codes, unpack_codes

CodeBits = Literal[1, 2, 4, 8, 16]
FP16_BITS = 16


class AdditiveCodebooks(Codec):
    """W = row_scale * (sum of one entry of each codebook), for each vector of ``group`` columns."""

    name: ClassVar[str] = "additive"
    by_rows: ClassVar[tuple[str, ...]] = ("codes", "row_scale")

    group: int = Field(gt=0, le=64)
    """Columns of a vector."""
    codebooks: int = Field(gt=0, le=16)
    bits: CodeBits
    """Of a code."""
    entries: int = Field(gt=0, le=1 << 16)
    """Vectors of a codebook: 2^bits, or fewer where a layer has fewer vectors than that."""

    @model_validator(mode="after")
    def _codes_reach_the_entries(self) -> Self:
        if self.entries > 1 << self.bits:
            raise ValueError(f"codes of {self.bits} bits do not reach {self.entries} entries")
        return self

    @classmethod
    def sized(cls, rows: int, columns: int, group: int, codebooks: int, bits: CodeBits) -> Self:
        """The codec of a layer, with no more entries than the layer has vectors."""
        entries = min(1 << bits, rows * -(-columns // group))
        return cls(
            rows=rows, columns=columns, group=group, codebooks=codebooks, bits=bits, entries=entries
        )

    @property
    def groups(self) -> int:
        """Vectors of a row."""
        return -(-self.columns // self.group)

    @property
    def payload_bits(self) -> int:
        """Bits of the codes."""
        return self.rows * self.codebooks * self.groups * self.bits

    @property
    def codebook_bits(self) -> int:
        """Bits of the codebooks, which a small layer pays dearly for."""
        return self.codebooks * self.entries * self.group * FP16_BITS

    @property
    def working_bytes(self) -> int:
        """Codes in whole bytes, or four for those of 16 bits; codebooks and scales in fp16."""
        width = 4 if self.bits == FP16_BITS else 1
        codes = self.rows * self.codebooks * self.groups * width
        return codes + self.codebook_bits // 8 + 2 * self.rows

    def specification(self) -> dict[str, ValueType]:
        """Codes of each row and codebook on whole bytes, codebooks, row scales."""
        width = -(-self.groups * self.bits // 8)
        table = (self.codebooks, self.entries, self.group)
        return {
            "codes": ValueType(dtype="u8", shape=(self.rows, self.codebooks, width)),
            "codebook": ValueType(dtype="f16", shape=table),
            "row_scale": ValueType(dtype="f16", shape=(self.rows,)),
        }

    @staticmethod
    def working(state: Additive, bits: CodeBits) -> dict[str, Tensor]:
        """Working tensors of a fitted state.

        Returns:
            ``codes`` u8[rows, M, G], or i32 for codes of 16 bits, ``codebook`` f16[M, K, g] and
            ``row_scale`` f16[rows].
        """
        kind = torch.int32 if bits == FP16_BITS else torch.uint8
        return {
            "codes": state.codes.to(kind),
            "codebook": state.codebook.half(),
            "row_scale": state.scale.half(),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Codes to bit fields, lowest bits first; those of 16 bits to two bytes, low byte first."""
        codes = working["codes"]
        if self.bits == FP16_BITS:
            halves = torch.stack([codes & 255, codes >> 8], dim=-1).flatten(-2).to(torch.uint8)
            return {**working, "codes": halves.contiguous()}
        return {**working, "codes": pack_codes(codes, self.bits).contiguous()}

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bytes to codes."""
        packed = stored["codes"]
        if self.bits == FP16_BITS:
            low, high = packed.to(torch.int32).reshape(*packed.shape[:-1], -1, 2).unbind(-1)
            return {**stored, "codes": low | high << 8}
        return {**stored, "codes": unpack_codes(packed, self.bits, self.groups)}

    def check(self, stored: Tensors, layer: str) -> None:
        """As every codec, and no code beyond the entries. Raises ``InvalidArtifact``."""
        super().check(stored, layer)
        if self.entries == 1 << self.bits:
            return
        highest = int(self.unpack(stored)["codes"].max())
        if highest >= self.entries:
            raise InvalidArtifact(
                f"a code is {highest}, the codebooks have {self.entries} entries", where=[layer]
            )

    def dense(self, working: Tensors) -> Tensor:
        """Entries added in the order of the codebooks, times the scale, in fp32."""
        return self.state(working).dense()[:, : self.columns].contiguous()

    @staticmethod
    def state(working: Tensors) -> Additive:
        """The working tensors as the numerics have them."""
        codes, table = working["codes"].long(), working["codebook"].float()
        return Additive(codes, table, working["row_scale"].float())

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedAdditive:
        """Codebooks and scales that move behind fixed codes."""
        return RelaxedAdditive(self.state(working), self.bits, self.columns)

    def rescaling(self) -> NamedScales:
        """Codebooks and row scales."""
        return NamedScales(self.dense, ("codebook", "row_scale"), ("row_scale",))

    def text(self) -> str:
        """``2 codebooks of 256 x 8   2 bits + 1 of codebooks``: bits of a weight."""
        weights = self.rows * self.columns
        codes, table = self.payload_bits / weights, self.codebook_bits / weights
        several = "codebook" if self.codebooks == 1 else "codebooks"
        size = f"{self.codebooks} {several} of {self.entries} x {self.group}"
        return f"{size}   {codes:.4g} bits + {table:.2g} of {several}"
