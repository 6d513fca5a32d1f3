"""Collect each stage's second moment over masked samples.

Source: Quant-dLLM, arXiv 2510.03274, Masked Calibration Simulation (MCS). Sample i of N is masked
at time t_i = (i + 1) / N: each token after a visible prefix is replaced by the mask token with
probability t_i. The linears of one stage read one value and share its moment.

    before   %h0.q = linear %x   w f16[64,512]
    after        @moment  f32[512,512]   128 samples, 32,768 tokens, 38% masked
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.calibration.masks import mask_windows
from qdc.calibration.samples import draw_windows
from qdc.errors import InvalidCalibration
from qdc.ir.annotations import Moment
from qdc.ir.graph import LayerGraph
from qdc.numerics.moment import MomentAccumulator
from qdc.passbase import Kinds, Pass
from qdc.pipeline.unit import Unit


class CalibrateMcs(Pass):
    """Collect each stage's second moment over masked samples.

    Inside ``stages(...)`` every stage is calibrated on the already quantized stream; outside it, on
    the full-precision stream.
    """

    name: ClassVar[str] = "calibrate-mcs"
    provides: ClassVar[Kinds] = (Moment,)
    reads_calibration: ClassVar[bool] = True

    samples: int = Field(default=128, ge=1, le=1 << 20, description="sequences to draw")
    length: int | None = Field(
        default=None, ge=2, description="tokens of a sequence; the model's longest if not given"
    )
    prefix: float = Field(default=0.25, ge=0, lt=1, description="share of a sequence kept visible")
    seed: int = Field(default=0, ge=0, lt=1 << 62, description="seed of windows and masks")
    batch: int = Field(default=8, ge=1, description="sequences computed at once")

    def check(self, graph: LayerGraph) -> None:
        """Refuse samples that are longer than the model takes."""
        if self.length is not None and self.length > graph.model.max_length:
            raise InvalidCalibration(
                f"samples of {self.length} tokens are asked for, "
                f"the model takes {graph.model.max_length}",
                help="choose a smaller length, or leave it out",
            )

    def run(self, unit: Unit) -> None:
        """Advance the stream to each stage and add up the value that it reads."""
        stream = unit.stream(lambda: self.batches(unit))
        masked = (stream.tokens == unit.model.mask_token_id).double().mean().item()
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            accumulator = MomentAccumulator(layers[0].columns, unit.device)
            for value in stream.values(stage):
                accumulator.add(value)
            tensor = unit.put(f"{stage.value}:moment", accumulator.value())
            note = Moment(
                tensor=tensor, samples=self.samples, tokens=accumulator.tokens, masked=masked
            )
            for node in layers:
                unit.annotate(node, note)
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    def batches(self, unit: Unit) -> list[Tensor]:
        """Masked samples, ``i64[batch, length]`` each; a function of options and text alone."""
        text = unit.calibration()
        length = self.length or unit.model.max_length
        clean = draw_windows(text.source.documents, text.encode, self.samples, length, self.seed)
        masked, _ = mask_windows(clean, unit.model.mask_token_id, self.prefix, self.seed)
        return list(torch.split(masked, self.batch))
