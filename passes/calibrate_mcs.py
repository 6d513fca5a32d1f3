"""Collect each stage's second moment over masked samples.

Source: Quant-dLLM, arXiv 2510.03274, Masked Calibration Simulation (MCS). Sample i of N is masked
at time t_i = (i + 1) / N: each token after a visible prefix is replaced by the mask token with
probability t_i. The linears of one stage read one value and share its moment.

    before   %h0.q = linear %x   w f16[64,512]
    after        @moment  f32[512,512]   128 samples, 32,768 tokens, 38% masked

Other geometries, for other samplers and for comparison:

- ``uniform``: the whole window is masked, at times that are random, one in each N-th of 0..1;
- ``block-diffusion``: prefix and earlier blocks are visible, the current block is partly masked,
  all later ones are masked;
- ``rollout``: states of the original model's own sampler, which fills the place of least doubt
  first; costs about half of ``steps`` further runs of the model;
- ``clean``: no mask, as tools for autoregressive models calibrate.

The paper sees every sample at T times, the release and the default at one time each:
``timesteps=T``. The paper's figure shows a clean copy, the release has none: ``clean-copy``.
Where the text is prompts and answers, the prompt is the prefix, and only the answer is masked.
"""

from functools import partial
from itertools import repeat
from typing import ClassVar

from torch import Tensor

from qdc.calibration.options import CalibrationOptions
from qdc.ir.annotations import Moment
from qdc.ir.graph import Node, Stage
from qdc.numerics.moment import MomentAccumulator
from qdc.passbase import Kinds
from qdc.pipeline.stream import Stream
from qdc.pipeline.unit import Unit


class CalibrateMcs(CalibrationOptions):
    """Collect each stage's second moment over masked samples.

    Inside ``stages(...)`` every stage is calibrated on the already quantized stream; outside it, on
    the full-precision stream.
    """

    name: ClassVar[str] = "calibrate-mcs"
    provides: ClassVar[Kinds] = (Moment,)

    def run(self, unit: Unit) -> None:
        """Advance the stream to each stage and add up the value that it reads."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch), split=True)
        hidden = stream.tokens == unit.model.mask_token_id
        weights = None if self.masked_weight == 1 else self.weigh(hidden)
        masked = hidden.double().mean().item()
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            moment = MomentAccumulator(layers[0].columns, unit.device)
            unit.accumulate(layers, partial(self.add, stream, stage, weights, moment), moment)
            unit.share(layers, partial(self.note, unit, stage, masked, moment))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    @staticmethod
    def add(
        stream: Stream, stage: Stage, weights: Tensor | None, moment: MomentAccumulator
    ) -> None:
        """Add up what the stage reads."""
        shares = repeat(None) if weights is None else stream.rows(weights)
        for value, share in zip(stream.values(stage), shares, strict=False):
            moment.add(value, share)

    def note(
        self,
        unit: Unit,
        stage: Stage,
        masked: float,
        moment: MomentAccumulator,
        layers: tuple[Node, ...],
    ) -> None:
        """Keep the sum over all samples and write it on layers of the stage."""
        note = Moment(
            tensor=unit.put(f"{stage.value}:moment", moment.value()),
            samples=self.samples,
            tokens=moment.tokens,
            masked=masked,
            geometry=self.geometry,
            masked_weight=self.masked_weight,
        )
        for node in layers:
            unit.annotate(node, note)
