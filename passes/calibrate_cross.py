"""Collect each stage's second moment, and how its input drifts from the original model's.

Source: GPTAQ (arXiv 2504.02692), asymmetric calibration. As ``calibrate-mcs``, which it stands in
for, with the same options and samples; the same samples also run through the original model, and
the cross moment (x0 - x) x^T between both streams is kept for a lowering that takes part of the
error of the layers before it back. It runs the model twice.

    before   %h0.o = linear %x   w f16[512,512]
    after        @moment        f32[512,512]   128 samples, 32,768 tokens, 38% masked
                 @cross-moment  f32[512,512]   drift 3.1e-02
"""

from functools import partial
from itertools import repeat
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.calibration.options import CalibrationOptions
from qdc.ir.annotations import Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import LayerGraph, Node, Stage
from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.moment import MomentAccumulator
from qdc.passbase import Kinds
from qdc.pipeline.stream import Stream
from qdc.pipeline.unit import Unit


class CalibrateCross(CalibrationOptions):
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
        reference = unit.reference(lambda: list(torch.split(stream.tokens, self.batch)), split=True)
        hidden = stream.tokens == unit.model.mask_token_id
        weights = None if self.masked_weight == 1 else self.weigh(hidden)
        masked = hidden.double().mean().item()
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            reference.enter(stage)
            carrier = residual_of(unit.graph, stage) if self.residual else None
            columns, rows = layers[0].columns, None if carrier is None else layers[0].rows
            moment = MomentAccumulator(columns, unit.device)
            cross = CrossMomentAccumulator(columns, unit.device, rows=rows)
            add = partial(self.add, (stream, reference), stage, carrier, weights, moment, cross)
            unit.accumulate(layers, add, moment, cross)
            unit.share(layers, partial(self.note, unit, stage, masked, moment, cross))

    @staticmethod
    def add(
        streams: tuple[Stream, Stream],
        stage: Stage,
        carrier: str | None,
        weights: Tensor | None,
        moment: MomentAccumulator,
        cross: CrossMomentAccumulator,
    ) -> None:
        """Add up what the stage reads in the quantized stream and in the original one."""
        wanted = (stage.value,) if carrier is None else (stage.value, carrier)
        found = (stream.compute(wanted) for stream in streams)
        shares = repeat(None) if weights is None else streams[0].rows(weights)
        for (now, original), share in zip(zip(*found, strict=True), shares, strict=False):
            value = now[stage.value]
            moment.add(value, share)
            cross.add(value, original[stage.value], share)
            if carrier is not None:
                cross.add_residual(value, now[carrier], original[carrier], share)

    def note(
        self,
        unit: Unit,
        stage: Stage,
        masked: float,
        moment: MomentAccumulator,
        cross: CrossMomentAccumulator,
        layers: tuple[Node, ...],
    ) -> None:
        """Keep the sums over all samples and write them on layers of the stage."""
        lost = cross.residual()
        residual = None if lost is None else unit.put(f"{stage.value}:residual", lost)
        lasting = unit.put(f"{stage.value}:cross-moment", cross.value())
        cross.clear()  # the sums are larger than what is kept of them
        second = unit.put(f"{stage.value}:moment", moment.value())
        moment.clear()
        notes = (
            Moment(
                tensor=second,
                samples=self.samples,
                tokens=moment.tokens,
                masked=masked,
                geometry=self.geometry,
                masked_weight=self.masked_weight,
            ),
            CrossMoment(tensor=lasting, drift=cross.drift, residual=residual),
        )
        for node in layers:
            for note in notes:
                unit.annotate(node, note)


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
