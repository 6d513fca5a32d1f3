"""The codec ``ggml``: the blocks of a layer as llama.cpp has them in its files, byte for byte."""

from typing import ClassVar, Self

import torch
from pydantic import model_validator
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedggml import RelaxedGgml
from qdc.ir.types import ValueType
from qdc.numerics.blocks import block_slices
from qdc.numerics.ggmltypes import TYPES, BlockType, Fields, TypeName, decode


class Ggml(Codec):
    """A layer in blocks of one of ggml's types.

    Working and stored form are the same: ``blocks`` u8[rows, bytes of a row], the data of the
    tensor in a GGUF file, rows in the order of the checkpoint. ``docs/format.md`` has the layouts.
    """

    name: ClassVar[str] = "ggml"
    by_rows: ClassVar[tuple[str, ...]] = ("blocks",)

    type: TypeName

    @model_validator(mode="after")
    def _whole_blocks(self) -> Self:
        if self.columns % self.block_type.width:
            raise ValueError(
                f"{self.columns} columns are no whole blocks of {self.block_type.width}, of which "
                f"{self.type} consists"
            )
        return self

    @property
    def block_type(self) -> BlockType:
        """Sizes and layout."""
        return TYPES[self.type]

    @property
    def payload_bits(self) -> int:
        """Bits of the codes alone."""
        return self.rows * self.columns * self.block_type.bits

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return self.columns // self.block_type.width * self.block_type.nbytes

    @property
    def working_bytes(self) -> int:
        """As stored."""
        return self.rows * self.row_bytes

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The type's own blocks, or of 128 columns where those are narrower."""
        return block_slices(self.columns, max(128, self.block_type.width))

    def specification(self) -> dict[str, ValueType]:
        """One tensor of bytes."""
        return {"blocks": ValueType(dtype="u8", shape=(self.rows, self.row_bytes))}

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """As it is."""
        return dict(working)

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """As it is."""
        return dict(stored)

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification; the fp16 numbers in the bytes must be finite."""
        super().check(stored, layer)
        fields = self.fields(stored["blocks"])
        halves = [fields.d] if fields.dmin is None else [fields.d, fields.dmin]
        if not all(bool(each.isfinite().all()) for each in halves):
            raise InvalidArtifact("blocks hold a scale that is NaN or infinite", where=[layer])

    def fields(self, blocks: Tensor) -> Fields:
        """What the bytes ``u8[rows, bytes of a row]`` say."""
        return self.block_type.unpack(torch.unflatten(blocks, 1, (-1, self.block_type.nbytes)))

    def working(self, fields: Fields) -> dict[str, Tensor]:
        """The working tensors of fields."""
        return {"blocks": self.block_type.pack(fields).flatten(1)}

    def dense(self, working: Tensors) -> Tensor:
        """``d * scale * code - dmin * minimum`` in fp32, bit for bit as ggml decodes it."""
        return decode(self.fields(working["blocks"]))

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedGgml:
        """Latent weights behind the codes, scales behind ``d`` and ``dmin``."""
        return RelaxedGgml(self.fields(working["blocks"]), weight, self.block_type)

    def text(self) -> str:
        """``Q2_K   2 bits``, for the annotations of layers stored so."""
        return f"{self.type}   {self.block_type.bits} bits"

    @classmethod
    def fitting(cls, wanted: TypeName, columns: int) -> TypeName | None:
        """The type that rows of this many columns can have: the wanted one, Q8_0, or None."""
        candidates: tuple[TypeName, ...] = (wanted, "Q8_0")
        return next((name for name in candidates if columns % TYPES[name].width == 0), None)
