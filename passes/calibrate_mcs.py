"""Collect each stage's second moment over masked samples.

Source: Quant-dLLM, arXiv 2510.03274, Masked Calibration Simulation (MCS). Sample i of N is masked
at time t_i = (i + 1) / N: each token behind the prefix is replaced by the mask token with
probability t_i. The linears of one stage read one value and share its moment.

    before   %h0.q = linear %x   w f16[64,512]
    after        @moment  f32[512,512]   128 samples, 32,768 tokens, 50% masked

Other geometries, for other samplers and for comparison:

- ``uniform``: the whole window is masked, at times that are random, one in each N-th of 0..1;
- ``block-diffusion``: prefix and earlier blocks are visible, the current block is partly masked,
  all later ones are masked; the default of models whose attention goes by blocks, which are then
  counted from the beginning of the sample;
- ``rollout``: states of the original model's own sampler, which fills the place of least doubt
  first; costs about half of ``steps`` further runs of the model;
- ``tmas``: states of its whole trajectories, behind a prompt, with fixed shares from stretches of
  the way, more at the two ends (DLLMQuant, arXiv 2508.14090); costs as much as ``rollout``;
- ``clean``: no mask, as tools for autoregressive models calibrate.

The release keeps the first quarter of a sample visible, ``prefix=0.25``, so that no state has more
than three quarters masked; the default keeps nothing, for the loss where most is masked is lower.
The paper sees every sample at T times, the release and the default at one time each:
``timesteps=T``. The paper's figure shows a clean copy, the release has none: ``clean-copy``.
Where the text is prompts and answers, prompts stay visible besides; only answers are masked.

``token-weights=certainty`` counts x x^T of a token v^2 times, v = base + sqrt(confidence) of what
the original model predicts there (DLLMQuant); it costs one more run of the model.

The moment of an expert is that of the tokens routed to it, each counted once whatever its routing
weight. An expert that sees fewer than ``least-tokens`` gets that of all tokens, and a remark:

    before   %h0.experts.3.down = linear %x   w f16[512,64]
    after        @moment  f32[64,64]   8 samples, 256 tokens pooled for 12 routed, 38% masked
"""

from functools import partial
from typing import ClassVar

from torch import Tensor

from qdc.passkit import (
    Forecast,
    Kinds,
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
from qdc.passkit.experts import weighed
from qdc.passkit.guided import WeighedOptions


class CalibrateMcs(WeighedOptions):
    """Collect each stage's second moment over masked samples.

    Inside ``stages(...)`` every stage is calibrated on the already quantized stream; outside it, on
    the full-precision stream.
    """

    name: ClassVar[str] = "calibrate-mcs"
    provides: ClassVar[Kinds] = (Moment,)

    def run(self, unit: Unit) -> None:
        """Advance the stream to each stage and add up the value that it reads."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch), split=True)
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            source = self.source(unit, stream, stage, layers)
            moment = MomentAccumulator(layers[0].columns, unit.device)
            weights = self.counted(unit, stream, layers)
            add = partial(self.add, stream, stage, weights, source, moment)
            unit.accumulate(layers, add, moment)
            unit.share(layers, partial(self.note, unit, stage, source, moment))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    def add(
        self,
        stream: Stream,
        stage: Stage,
        weights: Tensor | None,
        source: Source,
        moment: MomentAccumulator,
    ) -> None:
        """Add up what the stage reads; tokens count as ``f32[samples, length]`` say, if given."""
        for part, share in weighed(stream, stage, pooled=source.pooled, weights=weights):
            moment.add(part.value, share)

    def note(
        self,
        unit: Unit,
        stage: Stage,
        source: Source,
        moment: MomentAccumulator,
        layers: tuple[Node, ...],
    ) -> None:
        """Keep the sum over all samples and write it on layers of the stage."""
        note = Moment(
            tensor=unit.put(table_key(stage.value, "moment"), moment.value()),
            samples=self.samples,
            tokens=moment.tokens,
            masked=source.masked,
            geometry=self.masks,
            masked_weight=self.masked_weight,
            token_weights=self.token_weights,
            routed=source.routed,
        )
        for node in layers:
            unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """One stream, and the sum of a stage while it grows."""
        stream = self.travel(unit)
        for stage, layers in unit.layers_by_stage():
            stream.enter(stage)
            (nbytes, work), columns = stream.cost((stage.value,)), layers[0].columns
            summed = Work(products=2 * stream.tokens_of(stage) * columns**2)
            unit.work(nbytes + 8 * columns**2, work + summed)
            unit.work((8 + 4) * columns**2)
            self.expect_moment(unit, stage, layers, round(stream.tokens_of(stage)))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)
