"""Collect each stage's second moment, and how its input drifts from the original model's.

Source: GPTAQ (arXiv 2504.02692), asymmetric calibration. As ``calibrate-mcs``, which it stands in
for, with the same options and samples; the same samples also run through the original model, and
the cross moment (x0 - x) x^T between both streams is kept for a lowering that takes part of the
error of the layers before it back. It runs the model twice.

    before   %h0.o = linear %x   w f16[512,512]
    after        @moment        f32[512,512]   128 samples, 32,768 tokens, 38% masked
                 @cross-moment  f32[512,512]   drift 3.1e-02

Experts as in ``calibrate-mcs``. The two models route for themselves; a token that only the
quantized one sends to an expert counts as not drifted, one that only the original sends there is
left out.
"""

from typing import ClassVar

import torch
from pydantic import Field

from qdc.calibration.experts import ExpertOptions, paired, read
from qdc.ir.annotations import Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import LayerGraph, Stage
from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.moment import MomentAccumulator
from qdc.passbase import Kinds
from qdc.pipeline.unit import Unit
from qdc.planning.forecast import Forecast
from qdc.planning.work import Work


class CalibrateCross(ExpertOptions):
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
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch))
        reference = unit.reference(lambda: list(torch.split(stream.tokens, self.batch)))
        hidden = stream.tokens == unit.model.mask_token_id
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            reference.enter(stage)
            moment = MomentAccumulator(layers[0].columns, unit.device)
            cross = CrossMomentAccumulator(layers[0].columns, unit.device)
            carrier = residual_of(unit.graph, stage) if self.residual else None
            others = () if carrier is None else (carrier,)
            source = self.source(unit, stream, stage, layers, hidden)
            for now, original in zip(
                read(stream, stage, hidden, others, pooled=source.pooled),
                read(reference, stage, hidden, others, pooled=source.pooled),
                strict=True,
            ):
                share = None if self.masked_weight == 1 else self.weigh(now.facts)
                moment.add(now.value, share)
                cross.add(now.value, paired(now, original), share)
                if carrier is not None:
                    residual_now, residual_before = now.found[carrier], original.found[carrier]
                    cross.add_residual(now.value, residual_now, residual_before, share)
            lost = cross.residual()
            residual = None if lost is None else unit.put(f"{stage.value}:residual", lost)
            tokens, second = moment.tokens, moment.value()
            del moment  # its sum is as large as what follows
            notes = (
                Moment(
                    tensor=unit.put(f"{stage.value}:moment", second),
                    samples=self.samples,
                    tokens=tokens,
                    masked=source.masked,
                    geometry=self.geometry,
                    masked_weight=self.masked_weight,
                    routed=source.routed,
                ),
                CrossMoment(
                    tensor=unit.put(f"{stage.value}:cross-moment", cross.value()),
                    drift=cross.drift,
                    residual=residual,
                ),
            )
            for node in layers:
                for note in notes:
                    unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """Two streams side by side, and the sums of a stage while they grow."""
        stream, reference = self.travel(unit), self.travel(unit, original=True)
        for stage, layers in unit.layers_by_stage():
            unit.enter(stream, stage)
            unit.enter(reference, stage)
            columns, rows = layers[0].columns, layers[0].rows
            carrier = residual_of(unit.graph, stage) if self.residual else None
            wanted = (stage.value,) if carrier is None else (stage.value, carrier)
            squares = 4 * columns**2
            residual = 0 if carrier is None else 4 * rows * columns
            effort = Work(products=stream.tokens_of(stage) * (4 * columns**2 + residual / 2))
            now, original = stream.compute(wanted), reference.compute(wanted)
            effort = effort + now.work + original.work
            unit.work(now.nbytes + original.nbytes + 2 * squares + 2 * residual, effort)
            unit.work(3 * squares + 2 * residual)
            lost = None if carrier is None else unit.put(stage, "residual", rows, columns)
            self.expect_moment(unit, stage, layers, round(stream.tokens_of(stage)))
            unit.work(2 * squares + residual)
            cross = unit.put(stage, "cross-moment", columns, columns)
            for node in layers:
                unit.expect(node, CrossMoment(tensor=cross, drift=0, residual=lost))


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
