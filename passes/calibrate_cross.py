"""Collect each stage's second moment, and how its input drifts from the original model's.

Source: GPTAQ (arXiv 2504.02692), asymmetric calibration. As ``calibrate-mcs``, which it stands in
for, with the same options and samples; the same samples also run through the original model, and
the cross moment (x0 - x) x^T between both streams is kept for a lowering that takes part of the
error of the layers before it back. It runs the model twice.

    before   %h0.o = linear %x   w f16[512,512]
    after        @moment        f32[512,512]   128 samples, 32,768 tokens, 50% masked
                 @cross-moment  f32[512,512]   drift 3.1e-02

Experts as in ``calibrate-mcs``. The two models route for themselves; a token that only the
quantized one sends to an expert counts as not drifted, one that only the original sends there is
left out.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, NamedTuple, Self

from torch import Tensor

from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.moment import ROWS, TOKENS
from qdc.passkit import (
    CrossMoment,
    Field,
    Forecast,
    Kinds,
    LayerGraph,
    Moment,
    MomentAccumulator,
    Node,
    Source,
    Stage,
    Stream,
    Unit,
    Work,
    table_key,
)
from qdc.passkit.experts import Reading, paired, parts_of, weighed_together
from qdc.passkit.guided import WeighedOptions
from qdc.passkit.lockstep import lockstep
from qdc.streaming.streamforecast import StreamForecast
from qdc.streaming.work import FP32

Sums = tuple[MomentAccumulator, CrossMomentAccumulator]
Readings = Mapping[str, tuple[Reading, Tensor | None]]
"""By the value that a stage reads: what it is, and what each of its tokens counts."""
COPIES = 3
"""Of what a stage reads of a batch, while it is added up: the drift, and what a product turns."""


class CalibrateCross(WeighedOptions):
    """Collect each stage's second moment, and how its input drifts from the original model's.

    Only inside ``stages(...)``, where stages are calibrated on the quantized stream.
    """

    name: ClassVar[str] = "calibrate-cross"
    provides: ClassVar[Kinds] = (Moment, CrossMoment)
    only_in_stages: ClassVar[bool] = True
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "samples"
    reads_all: ClassVar[bool] = False

    residual: bool = Field(
        default=True, description="also what the residual stream has lost, where a layer adds to it"
    )

    def run(self, unit: Unit) -> None:
        """Advance both streams to each stage and add up what it reads."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch), split=True)
        reference = unit.reference(stream.samples, split=True)
        for wave in unit.layers_by_wave():
            stages = [stage for stage, _ in wave]
            stream.enter(stages[0])
            reference.enter(stages[0])
            carriers = self.carriers(unit.graph, stages)
            sources = self.sources(unit, stream, wave)
            sums = {
                stage.value: sums_of(unit, layers, carried=stage.value in carriers)
                for stage, layers in wave
            }
            weights = {stage.value: self.counted(unit, stream, layers) for stage, layers in wave}
            streams = stream, reference
            add = partial(self.add, streams, stages, carriers, weights, sources, sums)
            unit.accumulate_all([(layers, sums[stage.value]) for stage, layers in wave], add)
            unit.share_wave(wave, partial(self.note, unit, sources, sums))

    def carriers(self, graph: LayerGraph, stages: Sequence[Stage]) -> dict[str, str]:
        """By the value of a stage what its output is added to, where that is followed."""
        found = {stage.value: residual_of(graph, stage) for stage in stages if self.residual}
        return {value: carrier for value, carrier in found.items() if carrier is not None}

    def add(
        self,
        streams: tuple[Stream, Stream],
        stages: list[Stage],
        carriers: Mapping[str, str],
        weights: Mapping[str, Tensor | None],
        sources: Mapping[str, Source],
        sums: Mapping[str, Sums],
    ) -> None:
        """Add up what the stages read in the quantized stream and in the original one.

        A token counts as ``weights`` say, ``f32[samples, length]``, or as the stream does.
        """
        pooled = {value for value, source in sources.items() if source.pooled}
        others = {value: (carrier,) for value, carrier in carriers.items()}
        for part in parts_of(streams[0], stages, pooled):
            found = (weighed_together(s, part, weights, others, pooled=pooled) for s in streams)
            for now, original in lockstep(*found):
                self.add_batch(now, original, carriers, sums)
                del now, original  # or they are held while the next batch is computed

    def add_batch(
        self,
        now: Readings,
        original: Readings,
        carriers: Mapping[str, str],
        sums: Mapping[str, Sums],
    ) -> None:
        """Add what the stages read of one batch, in both models."""
        for value, (reading, share) in now.items():
            before, carrier = original[value][0], carriers.get(value)
            self.add_one(reading, before, share, carrier, sums[value])

    def add_one(
        self,
        now: Reading,
        original: Reading,
        share: Tensor | None,
        carrier: str | None,
        sums: Sums,
    ) -> None:
        """Add what one stage reads of one batch."""
        moment, cross = sums
        moment.add(now.value, share)
        cross.add(now.value, paired(now, original), share)
        if carrier is not None:
            residual_now, residual_before = now.found[carrier], original.found[carrier]
            cross.add_residual(now.value, residual_now, residual_before, share)

    def note(
        self,
        unit: Unit,
        sources: Mapping[str, Source],
        all_sums: Mapping[str, Sums],
        stage: Stage,
        layers: tuple[Node, ...],
    ) -> None:
        """Keep the sums over all samples and write them on layers of a stage."""
        source, (moment, cross) = sources[stage.value], all_sums[stage.value]
        lost = cross.residual()
        residual = None if lost is None else unit.put(table_key(stage.value, "residual"), lost)
        lasting = unit.put(table_key(stage.value, "cross-moment"), cross.value())
        cross.clear()  # the sums are larger than what is kept of them
        second = unit.put(table_key(stage.value, "moment"), moment.value())
        moment.clear()
        notes = (
            Moment(
                tensor=second,
                samples=self.samples,
                tokens=source.counted(moment.tokens),
                masked=source.masked,
                geometry=self.chosen_geometry,
                masked_weight=self.masked_weight,
                token_weights=self.token_weights,
                routed=source.routed,
                left_out=source.left_out,
            ),
            CrossMoment(tensor=lasting, drift=cross.drift, residual=residual),
        )
        for node in layers:
            for note in notes:
                unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """Two streams side by side, and the sums of a stage while they grow."""
        stream, reference = self.travel(unit), self.travel(unit, original=True)
        for wave in unit.layers_by_wave():
            stages = [stage for stage, _ in wave]
            stream.enter(stages[0])
            reference.enter(stages[0])
            carriers = self.carriers(unit.graph, stages)
            sizes = [SumSizes.of(layers, stage.value in carriers) for stage, layers in wave]
            growing = sum(size.growing for size in sizes)
            effort = {
                stage.value: stream.tokens_of(stage) * size.products
                for (stage, _), size in zip(wave, sizes, strict=True)
            }
            for part in parts_of(stream, stages):
                values = [stage.value for stage in part]
                wanted = [*values, *(carriers[value] for value in values if value in carriers)]
                (now, work), (original, again) = stream.cost(wanted), reference.cost(wanted)
                summed = Work(products=sum(effort[value] for value in values))
                unit.work(now + original + growing, summed + work + again)
                unit.work(self.adding(unit, (stream, reference), part, wanted) + growing)
            for (stage, layers), size in zip(wave, sizes, strict=True):
                self.expect_notes(unit, stream, stage, layers, size, growing)
                growing -= size.growing

    def adding(
        self,
        unit: Forecast,
        streams: tuple[StreamForecast, StreamForecast],
        part: Sequence[Stage],
        wanted: Sequence[str],
    ) -> int:
        """Bytes while a batch is added up: what both streams gave, copies of one, a product."""
        given = sum(stream.given(wanted) for stream in streams)
        widest = max(unit.graph[stage.layers[0]].columns for stage in part)
        rows = max(min(TOKENS, streams[0].rows_read(stage)) for stage in part)
        return given + FP32 * (COPIES * rows + min(ROWS, widest)) * widest

    def expect_notes(
        self,
        unit: Forecast,
        stream: StreamForecast,
        stage: Stage,
        layers: tuple[Node, ...],
        size: "SumSizes",
        growing: int,
    ) -> None:
        """What is kept of the sums of a stage, one after the other, beside all that still grow."""
        columns, rows = layers[0].columns, layers[0].rows
        unit.work(growing + size.residual)
        lost = unit.put(stage, "residual", rows, columns) if size.residual else None
        unit.work(growing + size.squares)
        cross = unit.put(stage, "cross-moment", columns, columns)
        unit.work(growing - size.growing + 3 * size.squares)
        self.expect_moment(unit, stage, layers, round(stream.tokens_of(stage)))
        for node in layers:
            unit.annotate(node, CrossMoment(tensor=cross, drift=0, residual=lost))


class SumSizes(NamedTuple):
    """Bytes of the sums of a stage."""

    squares: int
    """Of one square matrix in fp32."""
    residual: int
    """The same of what the residual stream has lost, 0 where that is not followed."""

    @classmethod
    def of(cls, layers: tuple[Node, ...], carried: bool) -> Self:
        """Those of a stage."""
        columns, rows = layers[0].columns, layers[0].rows
        return cls(4 * columns**2, 4 * rows * columns * carried)

    @property
    def growing(self) -> int:
        """All of them while they grow, in fp64."""
        return 4 * self.squares + 2 * self.residual

    @property
    def products(self) -> float:
        """Operations for each token."""
        return self.squares + self.residual / 2


def sums_of(unit: Unit, layers: tuple[Node, ...], *, carried: bool) -> Sums:
    """Empty sums of a stage."""
    columns, rows = layers[0].columns, layers[0].rows if carried else None
    cross = CrossMomentAccumulator(columns, unit.device, rows=rows)
    return MomentAccumulator(columns, unit.device), cross


def residual_of(graph: LayerGraph, stage: Stage) -> str | None:
    """The value that the output of the stage's only layer is added to, or None."""
    if len(stage.layers) != 1:
        return None
    (layer,) = stage.layers
    readers = list(graph.edges.successors(layer))
    if len(readers) != 1 or graph[readers[0]].op != "add":
        return None
    others = [name for name in graph[readers[0]].inputs if name != layer]
    return others[0] if len(others) == 1 else None
