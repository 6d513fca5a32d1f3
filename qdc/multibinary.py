"""The multi-binary codec: planes of signs with row and column scales, block by block.

Every stored tensor keeps the outputs on its first and the planes on its second dimension, so that
slicing rows, slicing columns at block boundaries, and joining layers of one stage along the rows
are plain ``narrow`` and ``cat`` calls. ``docs/format.md`` specifies it.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from qdc.codec import Codec, Tensors
from qdc.errors import InvalidArtifact
from qdc.ir.annotations import HIGHEST_ORDER, LOWEST_ORDER
from qdc.ir.types import ValueType
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.blocks import block_slices, block_widths
from qdc.numerics.components import Components, dense


class MultiBinary(Codec):
    """W = sum over k of (row_scale_k col_scale_k^T) * signs_k in each block of columns."""

    name: ClassVar[str] = "multi-binary"

    block: int = Field(default=128, gt=0, multiple_of=8, le=1 << 16)
    orders: tuple[int, ...] = Field(min_length=1)
    """One order a block, left to right."""

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
        return self

    @property
    def planes(self) -> int:
        """Planes of all blocks together."""
        return sum(self.orders)

    @property
    def payload_bits(self) -> int:
        """One bit for each sign; the padding of a ragged last block is not counted."""
        widths = block_widths(self.columns, self.block)
        return self.rows * sum(o * w for o, w in zip(self.orders, widths, strict=True))

    def specification(self) -> dict[str, ValueType]:
        """Planes, row scales, column scales, orders."""
        rows, planes = self.rows, self.planes
        return {
            "planes": ValueType(dtype="u8", shape=(rows, planes, self.block // 8)),
            "row_scale": ValueType(dtype="f16", shape=(rows, planes)),
            "col_scale": ValueType(dtype="f16", shape=(1, planes, self.block)),
            "orders": ValueType(dtype="u8", shape=(len(self.orders),)),
        }

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Signs to bits; scales as they are."""
        return {
            "planes": pack_signs(working["signs"]).contiguous(),
            "row_scale": working["row_scale"].contiguous(),
            "col_scale": working["col_scale"].contiguous(),
            "orders": torch.tensor(self.orders, dtype=torch.uint8),
        }

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bits to signs."""
        return {
            "signs": unpack_signs(stored["planes"], self.block),
            "row_scale": stored["row_scale"],
            "col_scale": stored["col_scale"],
        }

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

    @staticmethod
    def working(blocks: list[Components], block: int) -> dict[str, Tensor]:
        """Join fitted blocks into the working form; a ragged block is padded with minus and 0."""
        signs = [_padded(c.signs, block, -1).transpose(0, 1) for c in blocks]
        columns = [_padded(c.col_scale, block, 0) for c in blocks]
        return {
            "signs": torch.cat(signs, dim=1).contiguous(),
            "row_scale": torch.cat([c.row_scale.T for c in blocks], dim=1).half().contiguous(),
            "col_scale": torch.cat(columns)[None].half().contiguous(),
        }


def _padded(tensor: Tensor, width: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[-1]), value=value)
