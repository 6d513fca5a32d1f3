"""Store embedding and output head on uniform grids of 8 or 4 bits.

They are as large as half of a compiled 8B model if they stay in 16 bits. Each row is one token; at
8 bits one grid a row loses nothing that an evaluation can see, so no statistics are read. Placed
first in a pipeline, the calibration already runs on the quantized embedding. A head that is tied to
the embedding reads the embedding's codes. The pass packs what it lowers, a part of a matrix at a
time.

    before   %wte = embedding %input_ids   w f16[2048,256]
    after        @vocab   one grid a row   8 bits   weight error 4.1e-05
                 @packed  532,480 B   8 code bits/weight   8.125 in all
"""

from typing import ClassVar, Literal

from torch import Tensor

from qdc.passkit import (
    Codec,
    Field,
    Kinds,
    LoweredVocabulary,
    Node,
    Packed,
    Tensors,
    UniformGrid,
    VocabularyLowering,
    block_slices,
    fit_uniform,
)

WIDEST = 1 << 16
"""Columns of the widest grid of the codec."""


class Vocabulary(LoweredVocabulary):
    """An embedding or an output head on uniform grids."""

    tag: ClassVar[str] = "vocab"
    codec: UniformGrid

    def text(self) -> str:
        """``one grid a row   8 bits   weight error 4.1e-05``."""
        codec = self.codec
        grids = f"{codec.groups} groups of {codec.group}" if codec.groups > 1 else "one grid a row"
        return f"{grids}   {codec.bits} bits   weight error {self.weight_error:.1e}"


class QuantizeVocab(VocabularyLowering):
    """Store embedding and output head on uniform grids of 8 or 4 bits."""

    name: ClassVar[str] = "quantize-vocab"
    annotates: ClassVar[Kinds] = (Vocabulary, Packed)

    bits: Literal[4, 8] = Field(default=8, description="bits of a code")
    group: int | None = Field(
        default=None,
        ge=8,
        le=WIDEST,
        multiple_of=8,
        description="columns of a grid; none: a whole row at 8 bits, 128 at 4",
    )

    def codec(self, node: Node) -> UniformGrid:
        """The codec of one matrix; a group is never wider than a row."""
        row = -(-node.columns // 8) * 8
        wanted = self.group or (WIDEST if self.bits == 8 else 128)
        return UniformGrid(
            rows=node.rows, columns=node.columns, group=min(wanted, row), bits=self.bits
        )

    def lower(self, weight: Tensor, codec: Codec) -> Tensors:
        """Round to the nearest levels of the codec's grids."""
        assert isinstance(codec, UniformGrid)
        slices = block_slices(codec.columns, codec.group)
        grids = [fit_uniform(weight[:, part], codec.bits) for part in slices]
        return UniformGrid.working(grids, codec.group)

    def note(self, codec: Codec, error: float) -> Vocabulary:
        """The grids, and what they cost."""
        assert isinstance(codec, UniformGrid)
        return Vocabulary(codec=codec, weight_error=error)
