"""What passes share that store embedding and output head: the loop over parts of a matrix.

A matrix of the vocabulary may be the largest of a model, and its rows share nothing. So it is
lowered and packed some rows at a time, and no copy of it in fp32 exists.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidCheckpoint, InvalidPipeline, UnsupportedModel
from qdc.format.codec import Codec, Lowered, Tensors
from qdc.ir.annotations import OUTSIDE, Kept, Packed
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.keys import file_key
from qdc.pipeline.passbase import Pass
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work

TINY = 2.0**-14
"""The smallest number of full precision in fp16."""
Lower = Callable[[Tensor, Codec], Tensors]
"""As ``VocabularyLowering.lower``."""
PART = 1 << 18
"""Weights that are held in fp32 at a time: few enough for a cache, many enough for a vector."""


class LoweredVocabulary(Lowered):
    """An embedding or an output head that is stored in fewer bits."""

    weight_error: float = Field(ge=0)
    """Squared error of the weights, as a share of their squares."""


class VocabularyLowering(Pass, ABC):
    """A pass that stores embedding and output head in the form of a codec."""

    barrier: ClassVar[bool] = True
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False

    @abstractmethod
    def codec(self, node: Node) -> Codec:
        """The codec of one matrix. Raises ``UnsupportedModel`` where there is none."""

    @abstractmethod
    def lower(self, weight: Tensor, codec: Codec) -> Tensors:
        """Working tensors of some rows, ``f32[rows, columns]``. Raises ``OverflowError``."""

    def lowering(self, unit: Unit, node: Node) -> tuple[Lower, int]:
        """What lowers the rows of one matrix, and how many weights of it at a time."""
        return self.lower, PART

    @abstractmethod
    def note(self, codec: Codec, error: float) -> LoweredVocabulary:
        """The annotation of one matrix."""

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse another one behind it, which would leave nothing of what it does.

        As where a preset stands behind a caller's own, whose work would be lost in silence.
        """
        again = next((step for step in later if isinstance(step, VocabularyLowering)), None)
        if again is not None:
            raise InvalidPipeline(
                f"{again.name} would undo what {self.name} before it does: both store embedding "
                "and output head",
                help="leave one of them out; qdc passes NAME shows what a preset is made of",
            )

    def check(self, graph: LayerGraph) -> None:
        """There is a vocabulary."""
        if not list(graph.vocabulary()):
            raise UnsupportedModel(
                "the model has neither embedding nor output head outside its blocks",
                help=f"leave {self.name} out of the pipeline",
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
        """Lower and pack one matrix, part by part along its rows.

        Raises:
            InvalidCheckpoint: its scales do not fit fp16, or hold nothing of the weights.
        """
        codec = self.codec(node)
        parts: list[dict[str, Tensor]] = []
        lost = total = peak = 0.0
        lower, together = self.lowering(unit, node)
        for weight in unit.row_parts(node, max(1, together // node.columns)):
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
        unit.annotate(node, self.note(codec, share))
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


def squares(values: Tensor) -> float:
    """Sum of squares, in fp64."""
    return float(torch.linalg.vector_norm(values, dtype=torch.float64)) ** 2
