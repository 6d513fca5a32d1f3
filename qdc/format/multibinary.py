"""The multi-binary codec: planes of signs with row and column scales, block by block.

Every stored tensor keeps the outputs on its first and the planes on its second dimension, so that
slicing rows, slicing columns at block boundaries, and joining layers of one stage along the rows
are plain ``narrow`` and ``cat`` calls. ``docs/format.md`` specifies it.
"""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import Codec, Tensors
from qdc.format.relaxedbinary import RelaxedBinary
from qdc.format.rescaledbinary import RescaledBinary
from qdc.ir.types import ValueType
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.blocks import block_slices, block_widths
from qdc.numerics.components import Components, dense, side_by_side
from qdc.numerics.orders import HIGHEST_ORDER, LOWEST_ORDER
from qdc.numerics.scalecodes import ScaleCode, decode_scales, encode_scales


class MultiBinary(Codec):
    """W = sum over k of (row_scale_k col_scale_k^T) * signs_k in each block of columns."""

    name: ClassVar[str] = "multi-binary"
    signs: ClassVar[bool] = True
    by_rows: ClassVar[tuple[str, ...]] = ("planes", "row_scale")
    packed_only: ClassVar[tuple[str, ...]] = ("orders", "row_peak", "col_peak")

    block: int = Field(default=128, gt=0, multiple_of=8, le=1 << 16)
    orders: tuple[int, ...] = Field(min_length=1)
    """One order a block, left to right."""
    scale_bits: Literal[8, 16] = 16
    """16: scales are fp16. 8: codes of 0..255 beside one fp16 peak a plane."""
    scale_code: ScaleCode = "linear"
    """How codes are read; linear, what older artifacts hold, is not written out."""

    @field_validator("orders")
    @classmethod
    def _in_range(cls, orders: tuple[int, ...]) -> tuple[int, ...]:
        if any(not LOWEST_ORDER <= order <= HIGHEST_ORDER for order in orders):
            raise ValueError(f"orders must lie in {LOWEST_ORDER}..{HIGHEST_ORDER}")
        return orders

    @model_validator(mode="after")
    def _tiles(self) -> "MultiBinary":
        blocks = -(-self.columns // self.block)
        if len(self.orders) != blocks:
            raise ValueError(f"{len(self.orders)} orders for {blocks} blocks")
        if self.scale_code != "linear" and self.scale_bits != 8:
            raise ValueError(f"scales of {self.scale_bits} bits are no {self.scale_code} codes")
        return self

    @model_serializer(mode="wrap")
    def _as_ever(self, usual: SerializerFunctionWrapHandler) -> dict[str, Any]:
        fields: dict[str, Any] = usual(self)
        return {k: v for k, v in fields.items() if (k, v) != ("scale_code", "linear")}

    @property
    def planes(self) -> int:
        """Planes of all blocks together."""
        return sum(self.orders)

    @property
    def working_bytes(self) -> int:
        """A byte for each sign, the padding included, and fp16 scales."""
        rows, planes = self.rows, self.planes
        return planes * (rows * self.block + 2 * rows + 2 * self.block)

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The blocks that have an order each."""
        return block_slices(self.columns, self.block)

    @property
    def payload_bits(self) -> int:
        """One bit for each sign; the padding of a ragged last block is not counted."""
        widths = block_widths(self.columns, self.block)
        return self.rows * sum(o * w for o, w in zip(self.orders, widths, strict=True))

    def specification(self) -> dict[str, ValueType]:
        """Planes, row scales, column scales, orders."""
        rows, planes = self.rows, self.planes
        scale = "f16" if self.scale_bits == 16 else "u8"
        wanted = {
            "planes": ValueType(dtype="u8", shape=(rows, planes, self.block // 8)),
            "row_scale": ValueType(dtype=scale, shape=(rows, planes)),
            "col_scale": ValueType(dtype=scale, shape=(1, planes, self.block)),
            "orders": ValueType(dtype="u8", shape=(len(self.orders),)),
        }
        if self.scale_bits == 8:
            wanted["row_peak"] = ValueType(dtype="f16", shape=(1, planes))
            wanted["col_peak"] = ValueType(dtype="f16", shape=(1, planes, 1))
        return wanted

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Signs to bits; scales as they are, or as codes."""
        packed = {
            "planes": pack_signs(working["signs"]).contiguous(),
            "row_scale": working["row_scale"].contiguous(),
            "col_scale": working["col_scale"].contiguous(),
            "orders": torch.tensor(self.orders, dtype=torch.uint8),
        }
        if self.scale_bits == 8:
            row, row_peak = encode_scales(working["row_scale"].T.float(), self.scale_code)
            packed["row_scale"], packed["row_peak"] = row.T.contiguous(), row_peak.T.contiguous()
            packed["col_scale"], packed["col_peak"] = encode_scales(
                working["col_scale"].float(), self.scale_code
            )
        return packed

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bits to signs, codes to scales."""
        row_scale, col_scale = self.scales(stored)
        signs = unpack_signs(stored["planes"], self.block)
        return {"signs": signs, "row_scale": row_scale, "col_scale": col_scale}

    def scales(self, stored: Tensors) -> tuple[Tensor, Tensor]:
        """Scales of rows f16[rows, P] and of columns f16[1, P, block], codes decoded."""
        row_scale, col_scale = stored["row_scale"], stored["col_scale"]
        if self.scale_bits == 8:
            row_scale = decode_scales(row_scale, stored["row_peak"], self.scale_code).half()
            col_scale = decode_scales(col_scale, stored["col_peak"], self.scale_code).half()
        return row_scale, col_scale

    def dense(self, working: Tensors) -> Tensor:
        """Each block from its components: fp32, components added in order."""
        parts = [dense(component) for component in self.components(working)]
        return torch.cat(parts, dim=1)

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification and the stored orders with the configuration's."""
        super().check(stored, layer)
        if tuple(stored["orders"].tolist()) != self.orders:
            raise InvalidArtifact(
                "the stored orders are not those of the configuration", where=[layer]
            )

    def components(self, working: Tensors) -> Iterator[Components]:
        """The components of each block, left to right; the padding is cut off."""
        first = 0
        for part, order in zip(block_slices(self.columns, self.block), self.orders, strict=True):
            planes, width = slice(first, first + order), part.stop - part.start
            yield Components(
                working["signs"][:, planes, :width].transpose(0, 1),
                working["row_scale"][:, planes].T.float(),
                working["col_scale"][0, planes, :width].float(),
            )
            first += order

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedBinary:
        """Latent weights and scales that start at the working tensors."""
        return RelaxedBinary(
            list(self.components(working)), weight, self.block, self.scale_bits, self.scale_code
        )

    def rescaling(self) -> RescaledBinary:
        """Row and column scales."""
        return RescaledBinary(
            self.dense, self.components, self.block, self.scale_bits, self.scale_code
        )

    @staticmethod
    def working(blocks: list[Components], block: int) -> dict[str, Tensor]:
        """Join fitted blocks into the working form; a ragged block is padded with minus and 0."""
        return side_by_side(blocks, block)


class OrderSizes(NamedTuple):
    """What a layer stores, in bits or bytes: so much for each order of a block, and what is fixed.

    Attributes:
        plane: i64[blocks], for each block.
        fixed: Of the layer.
    """

    plane: NDArray[np.int64]
    fixed: int


def sizes_by_order(
    rows: int, columns: int, widths: tuple[int, ...], scale_bits: Literal[8, 16]
) -> OrderSizes:
    """Bytes of a layer whose blocks have these widths: the planes of an order, and the rest."""
    blocks = len(widths)
    codec = MultiBinary(
        rows=rows,
        columns=columns,
        block=-(-widths[0] // 8) * 8,
        orders=(1,) * blocks,
        scale_bits=scale_bits,
    )
    plane = codec.model_copy(update={"orders": (2,) * blocks}).nbytes - codec.nbytes
    return OrderSizes(np.full(blocks, plane // blocks, dtype=np.int64), codec.nbytes - plane)
