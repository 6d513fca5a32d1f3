"""The partitioned binary codec: two bits a weight, whose meaning depends on the column.

In most columns they are a sign and the class of the weight's magnitude; in salient columns they are
two signs. So a salient column costs nothing more, and a layer's size does not depend on how many
there are; with classes in salient columns too they take a third bit. ``docs/format.md`` specifies
it. Source: related-systems.md 7 and 9 (BiLLM, ARB-LLM); where the bits stand is ours.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import SIZE_LIMIT, Codec, Tensors
from qdc.format.relaxedparts import RelaxedPartition
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.blocks import block_slices
from qdc.numerics.fields import pack_codes, unpack_codes
from qdc.numerics.partition import column_partition
from qdc.numerics.partitiongrid import PartitionGrid
from qdc.numerics.parts import BinaryPart

ScaleForm = Literal["mean", "column"]
COMPONENTS = ((0,), (1,), (2, 3), (4, 5))
"""Places of the row scales of each part's components."""


class PartitionedBinary(Codec):
    """W = mean + sum of one or two of +-row_scale col_scale, by the part of each element."""

    name: ClassVar[str] = "partitioned-binary"
    by_rows: ClassVar[tuple[str, ...]] = ("planes", "row_scale", "mean", "classes")

    block: int = Field(default=128, gt=0, multiple_of=8, le=1 << 16)
    form: ScaleForm
    """``mean``: a mean and scales of each row. ``column``: scales of each row and column."""
    salient: int | None = Field(default=None, ge=0, le=SIZE_LIMIT)
    """Salient columns, whose elements have classes too; None where only others have classes."""

    @model_validator(mode="after")
    def _fits(self) -> "PartitionedBinary":
        if (self.salient or 0) > self.columns:
            raise ValueError(f"{self.salient} salient columns of {self.columns}")
        return self

    @property
    def parts(self) -> int:
        """Parts of a block."""
        return 3 if self.salient is None else 4

    @property
    def blocks(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // self.block)

    @property
    def column_blocks(self) -> tuple[slice, ...]:
        """The blocks that have scales of their own."""
        return block_slices(self.columns, self.block)

    @property
    def payload_bits(self) -> int:
        """Two bits a weight, and the classes of salient elements."""
        return self.rows * (2 * self.columns + (self.salient or 0))

    @property
    def working_bytes(self) -> int:
        """A byte for each bit, and fp16 scales."""
        wanted = self.specification()
        bits = {"planes", "salient", "classes"}
        scales = sum(2 * t.elements({}) for suffix, t in wanted.items() if suffix not in bits)
        return self.payload_bits + self.columns + scales

    def specification(self) -> dict[str, ValueType]:
        """Planes, the list of salient columns, row scales; then what the form asks for."""
        rows, scales = self.rows, COMPONENTS[self.parts - 1][-1] + 1
        width = -(-self.columns // 8)
        wanted = {
            "planes": ValueType(dtype="u8", shape=(rows, 2, width)),
            "salient": ValueType(dtype="u8", shape=(width,)),
            "row_scale": ValueType(dtype="f16", shape=(rows, self.blocks, scales)),
        }
        if self.form == "mean":
            wanted["mean"] = ValueType(dtype="f16", shape=(rows, self.blocks, self.parts))
        else:
            wanted["col_scale"] = ValueType(dtype="f16", shape=(2, self.columns))
        if self.salient:
            wanted["classes"] = ValueType(dtype="u8", shape=(rows, -(-self.salient // 8)))
            if self.form == "column":
                wanted["sparse_col_scale"] = ValueType(dtype="f16", shape=(2, self.salient))
        return wanted

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Signs, columns and classes to bits."""
        packed = {**working, "planes": pack_signs(working["planes"]).contiguous()}
        for suffix in ("salient", "classes"):
            if suffix in packed:
                packed[suffix] = pack_codes(packed[suffix], 1).contiguous()
        return packed

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Bits to signs, columns and classes."""
        working = {**stored, "planes": unpack_signs(stored["planes"], self.columns)}
        for suffix, width in (("salient", self.columns), ("classes", self.salient or 0)):
            if suffix in stored:
                working[suffix] = unpack_codes(stored[suffix], 1, width)
        return working

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification, and salient columns with their number."""
        super().check(stored, layer)
        if self.salient is None:
            return
        found = int(unpack_codes(stored["salient"].cpu(), 1, self.columns).sum())
        if found != self.salient:
            raise InvalidArtifact(
                f"{found} columns are marked as salient, the configuration says {self.salient}",
                where=[layer],
            )

    def dense(self, working: Tensors) -> Tensor:
        """Each element by the formula of its part: fp32, components in order, then the mean."""
        planes, salient = working["planes"], working["salient"] > 0
        large = planes[:, 1] > 0
        if "classes" in working:
            large = large.clone()
            large[:, salient] = working["classes"] > 0
        parts = column_partition(salient, large, salient_classes=self.salient is not None)
        result = torch.zeros(self.rows, self.columns, device=planes.device)
        for part, places in enumerate(COMPONENTS[: self.parts]):
            columns = self._column_scales(working, part)
            terms = [
                self._by_column(working["row_scale"][:, :, place]) * columns[k] * planes[:, k]
                for k, place in enumerate(places)
            ]
            total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
            if self.form == "mean":
                total = total + self._by_column(working["mean"][:, :, part])
            result = torch.where(parts == part, total, result)
        return result

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedPartition:
        """Latent weights and scales that start at the working tensors."""
        return RelaxedPartition(self.dense, working, weight)

    def rescaling(self) -> NamedScales:
        """All scales and means."""
        return NamedScales(self.dense, ("row_scale", "mean", "col_scale", "sparse_col_scale"))

    def text(self) -> str:
        """``4 blocks   means``, for the annotations of layers stored so."""
        classes = "" if self.salient is None else f"   {self.salient} salient columns in classes"
        scales = "row means" if self.form == "mean" else "column scales"
        return f"{self.blocks} blocks   {scales}{classes}"

    @staticmethod
    def working(
        grids: Sequence[PartitionGrid], written: Sequence[Tensor], form: ScaleForm
    ) -> dict[str, Tensor]:
        """Working tensors of blocks that stand side by side.

        Args:
            grids: levels of each block, of ``BinaryPart``s in the order of ``COMPONENTS``.
            written: each block on its levels, ``f32[rows, width]``.
            form: what is stored of the scales.
        """
        blocks = [_Block(g, w) for g, w in zip(grids, written, strict=True)]
        salient = torch.cat([block.salient for block in blocks])
        found = {
            "planes": torch.cat([block.planes for block in blocks], dim=2),
            "salient": salient.to(torch.uint8),
            "row_scale": torch.stack([block.row_scale for block in blocks], dim=1).half(),
        }
        if form == "mean":
            found["mean"] = torch.stack([block.mean for block in blocks], dim=1).half()
        else:
            found["col_scale"] = torch.cat([block.col_scale for block in blocks], dim=1).half()
        if len(grids[0].grids) > 3 and bool(salient.any()):
            found["classes"] = torch.cat([block.classes for block in blocks], dim=1)
            if form == "column":
                sparse = [block.sparse_col_scale for block in blocks]
                found["sparse_col_scale"] = torch.cat(sparse, dim=1).half()
        return found

    def _by_column(self, values: Tensor) -> Tensor:
        """Numbers ``f16[rows, blocks]`` at each column of their block, ``f32[rows, columns]``."""
        width = min(self.block, self.columns)  # a block wider than the layer is not written out
        return values.float().repeat_interleave(width, 1)[:, : self.columns]

    def _column_scales(self, working: Tensors, part: int) -> list[Tensor]:
        """What the row scales of each component of a part are multiplied by, ``f32[columns]``."""
        if self.form == "mean":
            return [torch.ones(self.columns, device=working["planes"].device)] * 2
        scale = working["col_scale"].float()
        if part < 2:
            return [scale[part]]
        if part == 3 and "sparse_col_scale" in working:
            scale = scale.clone()
            scale[:, working["salient"] > 0] = working["sparse_col_scale"].float()
        return [scale[0], scale[1]]


class _Block:
    """What one block adds to each working tensor."""

    def __init__(self, grid: PartitionGrid, written: Tensor) -> None:
        """Take the codes of a block apart: the part of each element, then its signs."""
        grids = [part for part in grid.grids if isinstance(part, BinaryPart)]
        parts = grid.locate(written)
        self.salient = grid.allowed[2]
        signs = [part.signs(written) for part in grids]
        first = second = torch.where(parts == 1, 1.0, -1.0)
        for number, of_part in enumerate(signs):
            first = torch.where(parts == number, of_part[0], first)
            if len(of_part) == 2:
                second = torch.where(parts == number, of_part[1], second)
        self.planes = torch.stack([first, second], dim=1).to(torch.int8)
        self.classes = (parts[:, self.salient] == 3).to(torch.uint8)
        self.row_scale = torch.cat([part.row_scale for part in grids]).T
        self.mean = torch.stack([part.mean for part in grids], dim=1)
        others = torch.cat([grids[0].col_scale, grids[1].col_scale])
        self.col_scale = torch.where(self.salient, grids[2].col_scale, others)
        self.sparse_col_scale = grids[-1].col_scale[:, self.salient]
