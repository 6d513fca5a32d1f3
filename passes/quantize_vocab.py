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

import torch
from torch import Tensor

from qdc.ir.annotations import OUTSIDE
from qdc.passkit import (
    Field,
    Forecast,
    InvalidCheckpoint,
    Kept,
    Kinds,
    LayerGraph,
    Lowered,
    Node,
    Packed,
    Pass,
    Tensors,
    UniformGrid,
    Unit,
    UnsupportedModel,
    Work,
    block_slices,
    file_key,
    fit_uniform,
)

WIDEST = 1 << 16
"""Columns of the widest grid of the codec."""
TINY = 2.0**-14
"""The smallest number of full precision in fp16."""
PART = 1 << 18
"""Weights that are held in fp32 at a time: few enough for a cache, many enough for a vector."""


class Vocabulary(Lowered):
    """An embedding or an output head on uniform grids."""

    tag: ClassVar[str] = "vocab"
    codec: UniformGrid
    weight_error: float = Field(ge=0)
    """Squared error of the weights, as a share of their squares."""

    def text(self) -> str:
        """``one grid a row   8 bits   weight error 4.1e-05``."""
        codec = self.codec
        grids = f"{codec.groups} groups of {codec.group}" if codec.groups > 1 else "one grid a row"
        return f"{grids}   {codec.bits} bits   weight error {self.weight_error:.1e}"


class QuantizeVocab(Pass):
    """Store embedding and output head on uniform grids of 8 or 4 bits."""

    name: ClassVar[str] = "quantize-vocab"
    annotates: ClassVar[Kinds] = (Vocabulary, Packed)
    barrier: ClassVar[bool] = True

    bits: Literal[4, 8] = Field(default=8, description="bits of a code")
    group: int | None = Field(
        default=None,
        ge=8,
        le=WIDEST,
        multiple_of=8,
        description="columns of a grid; none: a whole row at 8 bits, 128 at 4",
    )

    def check(self, graph: LayerGraph) -> None:
        """There is a vocabulary."""
        if not list(graph.vocabulary()):
            raise UnsupportedModel(
                "the model has neither embedding nor output head outside its blocks",
                help="leave quantize-vocab out of the pipeline",
            )

    def run(self, unit: Unit) -> None:
        """Quantize one matrix after the other; those that somebody keeps stay as they are."""
        wanted = []
        for node in unit.graph.vocabulary():
            kept = unit.graph.get(node.name, Kept)
            if kept is not None and kept.reason != OUTSIDE:
                unit.remark("missed", node, reason=kept.reason)
                continue
            unit.graph.remove(node.name, Kept)
            wanted.append(node)

        def quantize(nodes: tuple[Node, ...]) -> None:
            for node in nodes:
                self.quantize(unit, node)

        unit.share(wanted, quantize)

    def forecast(self, unit: Forecast) -> None:
        """Both matrices, each read from its file and stored twice before its parts are one."""
        for node in unit.graph.vocabulary():
            codec = self.codec(node)
            unit.work(node.weight.nbytes + codec.nbytes, host=True)
            unit.work(2 * codec.nbytes, Work(elements=12 * node.rows * node.columns), host=True)
            unit.lower(node, codec)
            unit.pack(node)

    def quantize(self, unit: Unit, node: Node) -> None:
        """Lower and pack one matrix, part by part along its rows, which share nothing.

        Raises:
            InvalidCheckpoint: its grids do not fit fp16, or hold nothing of the weights.
        """
        codec = self.codec(node)
        parts: list[dict[str, Tensor]] = []
        lost = total = peak = 0.0
        for weight in unit.row_parts(node, max(1, PART // node.columns)):
            part = codec.model_copy(update={"rows": len(weight)})
            try:
                working = lower(weight, part)
            except OverflowError as error:
                raise InvalidCheckpoint(
                    f"weights do not fit fp16 scales: {error}",
                    where=[f"%{node.name}"],
                    help="scale the weights of the checkpoint below 65504",
                ) from error
            parts.append(part.pack_exactly(working, node.name))
            lost += squares(part.dense(working) - weight)
            total += squares(weight)
            peak = max(peak, float(weight.abs().max()))
        if 0 < peak < TINY and lost >= total:
            raise InvalidCheckpoint(
                "weights do not fit fp16 scales: they are so small that they decode to zero",
                where=[f"%{node.name}"],
                help="scale the weights of the checkpoint above 6e-5",
            )
        share = lost / total if total else 0.0
        unit.annotate(node, Vocabulary(codec=codec, weight_error=share))
        stored = {s: torch.cat([part.pop(s) for part in parts]) for s in codec.specification()}
        codec.check(stored, node.name)
        note = Packed(
            tensors=tuple(unit.put(file_key(node.path, s), tensor) for s, tensor in stored.items()),
            suffixes=tuple(stored),
            payload_bits=codec.payload_bits,
            weights=node.rows * node.columns,
        )
        unit.annotate(node, note)
        unit.remark("passed", node, weight_error=share)

    def codec(self, node: Node) -> UniformGrid:
        """The codec of one matrix; a group is never wider than a row."""
        row = -(-node.columns // 8) * 8
        wanted = self.group or (WIDEST if self.bits == 8 else 128)
        return UniformGrid(
            rows=node.rows, columns=node.columns, group=min(wanted, row), bits=self.bits
        )


def squares(values: Tensor) -> float:
    """Sum of squares, in fp64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2


def lower(weight: Tensor, codec: UniformGrid) -> Tensors:
    """Round ``f32[rows, columns]`` to the nearest levels of the codec's grids."""
    slices = block_slices(codec.columns, codec.group)
    grids = [fit_uniform(weight[:, part], codec.bits) for part in slices]
    return UniformGrid.working(grids, codec.group)
