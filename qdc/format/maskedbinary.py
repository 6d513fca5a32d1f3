"""The masked binary codec: signs, and 8-bit codes for the elements that a bitmap marks.

Signs and codes are streams without gaps: a row has as many codes as its bits of the bitmap say.
``docs/format.md`` specifies it. Source of the layout: related-systems.md 12 (PB-LLM).
"""

from typing import ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.codec import SIZE_LIMIT, Codec, Tensors
from qdc.format.relaxedparts import RelaxedMasked
from qdc.format.rescaling import NamedScales
from qdc.ir.types import ValueType
from qdc.numerics.bitplanes import pack_signs, unpack_signs
from qdc.numerics.blocks import block_slices
from qdc.numerics.fields import pack_codes, unpack_codes

CODE_BITS = 8


class MaskedBinary(Codec):
    """W = step * code + minimum at marked elements, mean + scale * sign at the others."""

    name: ClassVar[str] = "masked-binary"

    group: int = Field(ge=0, le=SIZE_LIMIT)
    """Columns that share scales; 0 for whole rows."""
    salient: int = Field(ge=0, le=SIZE_LIMIT**2)
    """Marked elements of the layer."""

    @model_validator(mode="after")
    def _fits(self) -> "MaskedBinary":
        if self.salient > self.rows * self.columns:
            raise ValueError(f"{self.salient} marked elements of {self.rows * self.columns}")
        return self

    @property
    def width(self) -> int:
        """Columns that share scales."""
        return min(self.group or self.columns, self.columns)

    @property
    def groups(self) -> tuple[slice, ...]:
        """The columns of each group."""
        return block_slices(self.columns, self.width)

    @property
    def payload_bits(self) -> int:
        """A bit for each sign, eight for each code."""
        return self.rows * self.columns + (CODE_BITS - 1) * self.salient

    @property
    def working_bytes(self) -> int:
        """A byte for each of mark, sign and code; fp16 scales."""
        return self.rows * (3 * self.columns + 8 * len(self.groups))

    def specification(self) -> dict[str, ValueType]:
        """The bitmap, both streams as far as there is anything in them, and scales."""
        rows, signs = self.rows, self.rows * self.columns - self.salient
        wanted = {"marked": ValueType(dtype="u8", shape=(rows, -(-self.columns // 8)))}
        if signs:
            wanted["signs"] = ValueType(dtype="u8", shape=(-(-signs // 8),))
        if self.salient:
            wanted["codes"] = ValueType(dtype="u8", shape=(self.salient,))
        scale = ValueType(dtype="f16", shape=(rows, len(self.groups)))
        return {**wanted, "mean": scale, "scale": scale, "minimum": scale, "step": scale}

    def pack(self, working: Tensors) -> dict[str, Tensor]:
        """Marks to bits; signs and codes to streams, row by row."""
        marked = working["marked"] > 0
        packed = {**working, "marked": pack_codes(working["marked"], 1).contiguous()}
        streams = {
            "signs": pack_signs(working["signs"][~marked]),
            "codes": working["codes"][marked],
        }
        for suffix, stream in streams.items():
            del packed[suffix]
            if len(stream):
                packed[suffix] = stream
        return packed

    def unpack(self, stored: Tensors) -> dict[str, Tensor]:
        """Streams to their places; where nothing stands there is a sign of -1, a code of 0."""
        bits = unpack_codes(stored["marked"], 1, self.columns)
        marked = bits > 0
        signs = torch.full(marked.shape, -1, dtype=torch.int8, device=marked.device)
        codes = torch.zeros_like(bits)
        if "signs" in stored:
            count = self.rows * self.columns - self.salient
            signs[~marked] = unpack_signs(stored["signs"], count)
        if "codes" in stored:
            codes[marked] = stored["codes"]
        return {**stored, "marked": bits, "signs": signs, "codes": codes}

    def check(self, stored: Tensors, layer: str) -> None:
        """Compare with the specification, and the bitmap with the number of marked elements."""
        super().check(stored, layer)
        found = int(unpack_codes(stored["marked"], 1, self.columns).sum(dtype=torch.int64))
        if found != self.salient:
            raise InvalidArtifact(
                f"{found} elements are marked, the configuration says {self.salient}",
                where=[layer],
            )

    def dense(self, working: Tensors) -> Tensor:
        """Each element by the formula of its kind: fp32, product exact, sum rounded once."""
        mean, scale, minimum, step = (
            working[suffix].float().repeat_interleave(self.width, 1)[:, : self.columns]
            for suffix in ("mean", "scale", "minimum", "step")
        )
        low = scale * working["signs"] + mean
        return torch.where(working["marked"] > 0, step * working["codes"] + minimum, low)

    def relax(self, working: Tensors, weight: Tensor) -> RelaxedMasked:
        """Latent weights and scales that start at the working tensors; marks stay."""
        return RelaxedMasked(self.dense, working, weight, self.width, CODE_BITS)

    def rescaling(self) -> NamedScales:
        """Scales and means of signs, grids of marked weights."""
        return NamedScales(self.dense, ("mean", "scale", "minimum", "step"))

    def text(self) -> str:
        """``10.0% in 8 bits   rows whole``, for the annotations of layers stored so."""
        share = self.salient / (self.rows * self.columns)
        groups = f"groups of {self.width}" if self.group else "whole rows"
        return f"{share:.1%} in {CODE_BITS} bits   {groups}"
