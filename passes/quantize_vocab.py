"""Store embedding and output head on uniform grids of 8 or 4 bits.

They are as large as half of a compiled 8B model if they stay in 16 bits. Each row is one token; at
8 bits one grid a row loses nothing that an evaluation can see, so no statistics are read. Placed
before the calibration, that already runs on the quantized embedding. A head that is tied to the
embedding reads the embedding's codes. The pass packs what it lowers, a part of a matrix at a time.

At 4 bits what the codes lose shows. With ``rounding=guided`` each column hands its error on to the
later ones of its row (GPTQ, arXiv 2210.17323), by how the loss bends with rows, which
``guide{vocabulary=true}`` notes; the form stays as it is.

    before   %wte = embedding %input_ids   w f16[2048,256]
    after        @vocab   one grid a row   8 bits   weight error 4.1e-05
                 @packed  532,480 B   8 code bits/weight   8.125 in all
"""

import math
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from qdc.ir.curvature import RowCurvature
from qdc.numerics.factor import factor_bytes
from qdc.passkit import (
    AffineGrid,
    Codec,
    Field,
    Forecast,
    Kinds,
    LoweredVocabulary,
    Node,
    Packed,
    Tensors,
    UniformGrid,
    Unit,
    VocabularyLowering,
    Work,
    block_slices,
    fit_uniform,
    model_validator,
    quantize_on_grids,
)
from qdc.passkit.outputs import DAMP
from qdc.passkit.row_curvatures import row_factor
from qdc.passkit.uniform_lowering import READS
from qdc.passkit.vocabulary_lowering import Lower
from qdc.streaming.work import FP32

WIDEST = 1 << 16
"""Columns of the widest grid of the codec."""
TOGETHER = 1 << 24
"""Weights whose columns are rounded one after the other: 64 MB, of which there are a few copies.
Another number may give other codes, for sums of fp32 differ with the number of rows."""
WEIGHTS_HELD, BLOCKS_HELD = 5, 9
"""Copies of these rows, and of a block of their columns, whose grid is refitted in fp64."""
ROUNDS = 1
"""Refits of guided grids, each with one sweep over the columns behind it."""


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

    rounding: Literal["nearest", "guided"] = Field(
        default="nearest", description="each weight alone, or by what its row costs together"
    )
    damp: float = Field(
        default=DAMP, gt=0, le=10, description="share of the mean curvature added to each column's"
    )

    @model_validator(mode="after")
    def _nearest_reads_no_damping(self) -> "QuantizeVocab":
        if self.rounding == "nearest" and self.damp != DAMP:
            raise ValueError("rounding=nearest does not read damp")
        return self

    def needs(self) -> Kinds:
        """The curvature of rows, where that is asked for."""
        return (*super().needs(), *((RowCurvature,) if self.rounding == "guided" else ()))

    def forecast(self, unit: Forecast) -> None:
        """As of any; columns that are rounded in turn take copies of many rows."""
        super().forecast(unit)
        for node in unit.graph.vocabulary() if self.rounding == "guided" else ():
            weights = node.rows * node.columns
            work = Work(products=weights * node.columns, elements=weights * READS["clip"])
            share = min(self.codec(node).group, node.columns) / node.columns
            copies = math.ceil((WEIGHTS_HELD + BLOCKS_HELD * share) * min(weights, TOGETHER))
            unit.work(FP32 * copies + factor_bytes(node.columns), work)

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

    def lowering(self, unit: Unit, node: Node) -> tuple[Lower, int]:
        """By the curvature of its rows, where that is asked for and known."""
        if self.rounding == "nearest":
            return super().lowering(unit, node)
        if unit.graph.get(node.name, RowCurvature) is None:
            unit.remark("missed", node, reason="guide could not say how its rows count: nearest")
            return super().lowering(unit, node)
        return partial(self.feedback, row_factor(unit, node, self.damp)), TOGETHER

    @staticmethod
    def feedback(upper: Tensor, weight: Tensor, codec: Codec) -> Tensors:
        """Round column by column; later columns of a row take over what the others lose.

        Args:
            upper: f32[columns, columns], V with the curvature inv(V^T V).
            weight: f32[rows, columns].
            codec: of these rows.
        """
        assert isinstance(codec, UniformGrid)
        slices, device = block_slices(codec.columns, codec.group), upper.device
        grids, dense = quantize_on_grids(
            weight.to(device),
            upper,
            slices,
            lambda block: AffineGrid.fit(block, codec.bits, "clip"),
            rounds=ROUNDS,
            sweeps=ROUNDS,
        )
        found = [grid.encode(dense[:, part]) for grid, part in zip(grids, slices, strict=True)]
        return UniformGrid.working(found, codec.group)

    def note(self, codec: Codec, error: float) -> Vocabulary:
        """The grids, and what they cost."""
        assert isinstance(codec, UniformGrid)
        return Vocabulary(codec=codec, weight_error=error)
