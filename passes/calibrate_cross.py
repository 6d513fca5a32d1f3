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

from functools import partial
from typing import ClassVar

from torch import Tensor

from qdc.numerics.asymmetry import CrossMomentAccumulator
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
from qdc.passkit.experts import paired, weighed
from qdc.passkit.guided import WeighedOptions

Sums = tuple[MomentAccumulator, CrossMomentAccumulator]


class CalibrateCross(WeighedOptions):
    """Collect each stage's second moment, and how its input drifts from the original model's.

    Only inside ``stages(...)``, where stages are calibrated on the quantized stream.
    """

    name: ClassVar[str] = "calibrate-cross"
    provides: ClassVar[Kinds] = (Moment, CrossMoment)
    only_in_stages: ClassVar[bool] = True

    residual: bool = Field(
        default=True, description="also what the residual stream has lost, where a layer adds to it"
    )

    def run(self, unit: Unit) -> None:
        """Advance both streams to each stage and add up what it reads."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch), split=True)
        reference = unit.reference(stream.samples, split=True)
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            reference.enter(stage)
            carrier = residual_of(unit.graph, stage) if self.residual else None
            rows = None if carrier is None else layers[0].rows
            moment = MomentAccumulator(layers[0].columns, unit.device)
            cross = CrossMomentAccumulator(layers[0].columns, unit.device, rows=rows)
            source = self.source(unit, stream, stage, layers)
            sums = moment, cross
            weights = self.counted(unit, stream, layers)
            add = partial(self.add, (stream, reference), stage, carrier, weights, source, sums)
            unit.accumulate(layers, add, *sums)
            unit.share(layers, partial(self.note, unit, stage, source, sums))

    def add(
        self,
        streams: tuple[Stream, Stream],
        stage: Stage,
        carrier: str | None,
        weights: Tensor | None,
        source: Source,
        sums: Sums,
    ) -> None:
        """Add up what the stage reads in the quantized stream and in the original one.

        A token counts as ``weights`` say, ``f32[samples, length]``, or as the stream does.
        """
        moment, cross = sums
        others = () if carrier is None else (carrier,)
        found = (weighed(s, stage, others, pooled=source.pooled, weights=weights) for s in streams)
        for (now, share), (original, _) in zip(*found, strict=True):
            moment.add(now.value, share)
            cross.add(now.value, paired(now, original), share)
            if carrier is not None:
                residual_now, residual_before = now.found[carrier], original.found[carrier]
                cross.add_residual(now.value, residual_now, residual_before, share)

    def note(
        self, unit: Unit, stage: Stage, source: Source, sums: Sums, layers: tuple[Node, ...]
    ) -> None:
        """Keep the sums over all samples and write them on layers of the stage."""
        moment, cross = sums
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
                tokens=moment.tokens,
                masked=source.masked,
                geometry=self.masks,
                masked_weight=self.masked_weight,
                token_weights=self.token_weights,
                routed=source.routed,
            ),
            CrossMoment(tensor=lasting, drift=cross.drift, residual=residual),
        )
        for node in layers:
            for note in notes:
                unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """Two streams side by side, and the sums of a stage while they grow."""
        stream, reference = self.travel(unit), self.travel(unit, original=True)
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            reference.enter(stage)
            columns, rows = layers[0].columns, layers[0].rows
            carrier = residual_of(unit.graph, stage) if self.residual else None
            wanted = (stage.value,) if carrier is None else (stage.value, carrier)
            squares = 4 * columns**2
            residual = 0 if carrier is None else 4 * rows * columns
            effort = Work(products=stream.tokens_of(stage) * (4 * columns**2 + residual / 2))
            (now, work), (original, again) = stream.cost(wanted), reference.cost(wanted)
            sums = 4 * squares + 2 * residual  # they grow in fp64
            unit.work(now + original + sums, effort + work + again)
            unit.work(sums + residual)
            lost = None if carrier is None else unit.put(stage, "residual", rows, columns)
            unit.work(sums + squares)
            cross = unit.put(stage, "cross-moment", columns, columns)
            unit.work(3 * squares)
            self.expect_moment(unit, stage, layers, round(stream.tokens_of(stage)))
            for node in layers:
                unit.annotate(node, CrossMoment(tensor=cross, drift=0, residual=lost))


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
