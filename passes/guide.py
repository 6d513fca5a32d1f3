"""Weigh tokens by how much the predictions hang on what a layer gives out there.

Source: GuidedQuant (arXiv 2505.07004). A second moment in which every token counts by the square of
the derivative of the end loss, taken over a layer's outputs, is the layer's own block of the loss's
curvature, where the plain moment counts all outputs alike. Here the loss is that of tokens drawn
from the original's own predictions at masked positions (with ``geometry=clean`` at all), so that
the mean of the squares is the curvature of KL(original, quantized), and no text is taught. The
outputs of all layers that read one value are averaged: one weight for each token and stage. Few
tokens have most of the squares, and a moment of few tokens scatters: their root (``exponent=0.5``)
loses less than the squares themselves, which are GuidedQuant's.

    before   %h0.q = linear %x   w f16[64,512]
    after        @guidance  128 samples of 256 tokens   as good as 9,310 equal ones
                 @curvature  f32[64,64]   16,384 predictions   0.0012 for each output
             %wte = embedding %input_ids   w f16[2048,64]
                 @row-curvature  f32[64,64]   16,384 predictions   0.00015 for each column

With ``outputs`` the products of the derivatives are kept too: the curvature of the loss by the
outputs of each layer (YAQA, arXiv 2505.22988), by which trellis-lower and daq-lower hand errors on
from row to row, and predict-error says what they cost. It waits in files, one for each layer. With
``vocabulary`` the same is noted of the rows of embedding and head, for quantize-vocab.

``calibrate-mcs`` and ``calibrate-cross`` read it with ``token-weights=guided``, and draw the same
samples; weights that none of them reads, or of other samples, are refused before anything runs.
Without them ``outputs`` or ``vocabulary`` will do, for curvatures may be of other samples.
States of the original wait on the host at every region's boundary, those of ``waiting`` samples at
a time; then regions are computed again from the last to the first, one at a time, with gradients.
Tokens of experts are not weighed.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from qdc.ir.curvature import OutputCurvature, RowCurvature
from qdc.ir.graph import EMBEDDING
from qdc.ir.guidance import Guidance
from qdc.ir.routing import rows_of
from qdc.ir.tensors import digest
from qdc.passkit import (
    Annotation,
    CalibrationOptions,
    Field,
    Forecast,
    InvalidCalibration,
    InvalidPipeline,
    Kinds,
    LayerGraph,
    Node,
    Pass,
    Stage,
    States,
    Unit,
    Work,
    table_key,
)
from qdc.passkit.beginning import embedding_slopes
from qdc.passkit.calibration_fields import WEIGHTS
from qdc.passkit.counted import CountedPositions
from qdc.passkit.course import Batch, Course, pieces
from qdc.passkit.curvatures import add_curvatures, add_products, foresee, tell_flat
from qdc.passkit.drawn import DrawnLoss
from qdc.passkit.head import POSITIONS, output_head
from qdc.passkit.row_curvatures import RowCurvatures
from qdc.pipeline.passbase import option_text
from qdc.streaming.forecast import NO_DIGEST
from qdc.streaming.memory import give_back
from qdc.streaming.stream import Stream
from qdc.streaming.work import FP32

WAITING_TOKENS = 16_384
"""At each region's boundary: 4 GB for 32 regions of width 4096. Each time all weights are read."""
ROWS_HELD = 6
"""Copies of an embedding's rows while what is made of them is taken back."""
READ_BY = {
    "outputs": "outputs=guided to predict-error, trellis-lower or daq-lower",
    "vocabulary": "rounding=guided to quantize-vocab",
}
"""What asks for the curvatures of each option."""
WITHOUT_HEAD = "leave guide out of the pipeline, and token-weights of calibrations"


class Guide(CalibrationOptions):
    """Weigh tokens by how much the predictions hang on what a layer gives out there."""

    name: ClassVar[str] = "guide"
    provides: ClassVar[Kinds] = (Guidance,)
    annotates: ClassVar[Kinds] = (OutputCurvature, RowCurvature)
    if_asked: ClassVar[Kinds] = annotates
    barrier: ClassVar[bool] = True
    unread: ClassVar[tuple[str, ...]] = WEIGHTS
    instead: ClassVar[str] = ", which is the calibration's own"

    # On the way back all values of a region are held for a batch, which small ones cost no time.
    batch: int = Field(default=2, ge=1, description="sequences computed at once")
    exponent: float = Field(
        default=0.5, ge=0, le=1, description="of the squared derivative; 0 weighs all tokens alike"
    )
    outputs: bool = Field(
        default=False, description="also note how the loss bends with the outputs of each layer"
    )
    vocabulary: bool = Field(
        default=False, description="also note how it bends with the rows of embedding and head"
    )
    waiting: int | None = Field(
        default=None,
        ge=1,
        description=f"samples whose states wait at a time; {WAITING_TOKENS:,} tokens if not given",
    )

    def gives(self) -> Kinds:
        """Curvatures, where they are asked for."""
        asked = zip(self.if_asked, (self.outputs, self.vocabulary), strict=True)
        return (*self.provides, *(kind for kind, wanted in asked if wanted))

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse weights that no pass reads, and readers that draw other samples."""
        reading = readers(Guidance, later)
        for kind, (option, reads) in zip(self.if_asked, READ_BY.items(), strict=True):
            if kind in self.gives() and not readers(kind, later):
                raise InvalidPipeline(
                    f"{self.name}{{{option}=true}} notes curvatures that no pass behind it reads",
                    help=f"behind {self.name} write {reads}, or leave {option} out",
                )
        if not reading and not self.outputs and not self.vocabulary:
            raise InvalidPipeline(
                f"{self.name} weighs tokens, and no calibration behind it asks for the weights",
                help="write token-weights=guided to calibrate-mcs or calibrate-cross behind it, or "
                f"leave {self.name} out",
            )
        own = self.draws()
        for step in reading:
            other = step.draws() if isinstance(step, CalibrationOptions) else own
            unlike = [name for name in own if own[name] != other[name]]
            if unlike:
                raise InvalidPipeline(
                    f"{self.name} weighs other samples than {step.name} draws",
                    where=[
                        f"{name}: {option_text(own[name])} and {option_text(other[name])}"
                        for name in unlike
                    ],
                    help=f"write the same {', '.join(unlike)} to {self.name} and {step.name}, or "
                    "to neither",
                )

    def check(self, graph: LayerGraph) -> None:
        """Refuse a model without a head."""
        super().check(graph)
        output_head(graph, WITHOUT_HEAD)

    def run(self, unit: Unit) -> None:
        """Run the original forwards and back again, with some samples after the others."""
        drawn = self.draw(unit)
        count, length = drawn.tokens.shape
        size = self.together(count, length)
        squares = {stage.layers[0]: list[Tensor]() for stage, _ in self.weighed(unit)}
        head, everywhere = output_head(unit.graph, WITHOUT_HEAD), self.chosen_geometry == "clean"
        counted = CountedPositions.of(unit.model, everywhere=everywhere)
        loss = DrawnLoss(head.value, counted, self.seed, unit.model.logit_cap)
        bends = RowCurvatures(unit.graph, *head.layers) if self.vocabulary else None
        for rows in torch.split(torch.arange(count), size):
            stream = unit.loose_stream(
                drawn.select(rows).batches(self.batch), unit.original_weights()
            )
            self.add(unit, stream, squares, loss, bends)
            unit.count(stream)
        if not loss.positions:
            raise InvalidCalibration(
                f"none of the {count} samples has a masked position",
                help=f"raise --samples or {self.name}{{samples=...}}",
            )
        for stage, layers in unit.layers_by_stage():
            found = squares.get(stage.layers[0])
            self.note(unit, drawn, stage, layers, None if found is None else torch.cat(found))
        give_back()
        if self.outputs:
            tell_flat(unit)
        if bends is not None:
            bends.write(unit, loss.positions)

    def together(self, samples: int, length: int) -> int:
        """Samples whose states wait at a time: whole batches."""
        batches = max(1, (self.waiting or max(1, WAITING_TOKENS // length)) // self.batch)
        return min(samples, batches * self.batch)

    @staticmethod
    def weighed(unit: Unit | Forecast) -> Iterator[tuple[Stage, tuple[Node, ...]]]:
        """The stages whose tokens are weighed: all but those of experts."""
        for stage, layers in unit.layers_by_stage():
            if rows_of(unit.graph, stage.value) is None:
                yield stage, layers

    def add(
        self,
        unit: Unit,
        stream: Stream,
        squares: dict[str, list[Tensor]],
        loss: DrawnLoss,
        bends: RowCurvatures | None,
    ) -> None:
        """Add the squared derivatives of the next samples, ``f32[b, length]`` for each batch.

        With ``outputs`` also the curvature of each layer, with ``vocabulary`` that of its rows.
        """
        head, read = output_head(unit.graph, WITHOUT_HEAD), unit.original_weights()
        first = list(stream.kept)
        way = list(pieces(stream, head))
        course = Course(stream.executor, stream.states, tuple(piece for piece, _ in way))
        before = loss.positions
        behind = loss.slopes(stream, read(*head.layers), None if bends is None else bends.add_head)
        for region in reversed(unit.graph.regions):
            piece, kept = way.pop()
            stages = [(s, layers) for s, layers in self.weighed(unit) if s in region.stages]
            weighed = [node for _, layers in stages for node in layers]
            bending = [n for n in unit.layers() if self.outputs and n.name in region.nodes]
            watched = tuple(dict.fromkeys(node.name for node in (*weighed, *bending)))
            parameters = {name: read(name) for name in piece.steps}
            products: dict[str, Tensor] = {}
            for index, held in enumerate(kept):
                batch = Batch(held, stream.segments_of(index))
                found = course.backward(batch, piece, parameters, behind[index], watched)
                behind[index], slopes = found
                for stage, layers in stages:
                    parts = [slopes[node.name].square().sum(-1).cpu() for node in layers]
                    squares[stage.layers[0]].append(sum_of(parts))
                for node in bending:
                    add_products(products, node.name, slopes[node.name])
            add_curvatures(unit, products, before, loss.positions)
        if bends is not None and bends.embedding is not None:
            for slopes in embedding_slopes(bends.embedding, stream, course, first, behind, read):
                bends.add_embedding(slopes)

    def note(
        self,
        unit: Unit,
        drawn: States,
        stage: Stage,
        layers: tuple[Node, ...],
        squares: Tensor | None,
    ) -> None:
        """Write the weights of a stage on its layers, from squares ``f32[samples, length]``."""
        data = drawn.data
        found, mean, reason = None, 0.0, "tokens of experts"
        if squares is not None and squares.shape != data.shape:
            reason = "it is computed for a sample, not for its tokens"
        elif squares is not None:
            found = squares.double().pow(self.exponent)
            mean, reason = float(found[data].mean()), "no prediction hangs on it"
        if found is None or not 0 < mean < math.inf:
            for node in layers:
                unit.remark("missed", node, reason=reason)
            found, mean = torch.ones(data.shape, dtype=torch.float64), 1.0
        weights = found / mean * data
        note = Guidance(
            tensor=unit.put(table_key(stage.layers[0], "guidance"), weights.float()),
            states=digest(drawn.tokens),
            effective=float(weights.sum().square() / weights.square().sum()),
        )
        for node in layers:
            unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """The original once forwards; every region again, forwards and back."""
        stream, waiting = self.travel(unit, original=True), 0
        stream.start(unit.graph.regions[0])
        samples, length = stream.tokens.shape
        share = self.together(samples, length) / samples
        matrices = tuple(unit.graph.vocabulary()) if self.vocabulary else ()
        bends = sum(FP32 * node.columns**2 for node in matrices)
        for region in unit.graph.regions:
            waiting += math.ceil(share * stream.kept_bytes() / unit.held_bytes)
            unit.keep_states("boundaries", waiting)
            nbytes, once = stream.way_back(stream.results(region))
            bending = [n for n in unit.layers() if self.outputs and n.name in region.nodes]
            squares = sum(node.rows**2 for node in bending)
            watched = sum(node.rows for node in unit.layers() if node.name in region.nodes)
            nbytes += FP32 * watched * min(self.batch, samples) * length  # slopes wait for the last
            products = Work(products=2 * squares * samples * length)
            unit.work(nbytes + bends + 2 * FP32 * squares, once.times(3) + products)
            for node in bending:
                foresee(unit, node, OutputCurvature, samples * length)
            for stage, layers in unit.layers_by_stage():
                if stage in region.stages:
                    tensor = unit.put(stage, "guidance", samples, length)
                    note = Guidance(tensor=tensor, states=NO_DIGEST, effective=samples * length)
                    for node in layers:
                        unit.annotate(node, note)
            stream.leave(region)
        (name,) = output_head(unit.graph, WITHOUT_HEAD).layers
        head = unit.graph[name]
        logits = FP32 * (head.rows * head.columns + 6 * POSITIONS * head.rows)
        unit.work(logits + bends, Work(products=4 * head.rows * head.columns * samples * length))
        for node in matrices:
            if node.op == EMBEDDING:  # what lies between it and the first region is computed again
                rows = min(self.batch, samples) * length
                unit.work(FP32 * node.columns * (node.rows + ROWS_HELD * rows))
            foresee(unit, node, RowCurvature, samples * length)
            square = node.columns**2
            unit.work(3 * FP32 * square, Work(products=2 * square * samples * length))
        unit.drop_boundaries("boundaries")


def readers(kind: type[Annotation], later: Sequence[Pass]) -> list[Pass]:
    """The passes that read what a pass before all of them writes, not what one of them does."""
    again = next((place for place, step in enumerate(later) if kind in step.gives()), len(later))
    return [step for step in later[: again + 1] if kind in step.needs()]


def sum_of(parts: Sequence[Tensor]) -> Tensor:
    """Their sum, in order."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total
