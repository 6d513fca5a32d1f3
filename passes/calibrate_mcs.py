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
  counted from the beginning of the sample, and whose later blocks count nothing, for no sampler has
  them in the model and nothing before them sees them (``left out`` in the note);
- ``rollout``: states of the original model's own sampler, which fills the place of least doubt
  first; costs about half of ``steps`` further runs of the model;
- ``tmas``: states of its whole trajectories, behind a prompt, with fixed shares from stretches of
  the way, more at the two ends (DLLMQuant, arXiv 2508.14090); costs as much as ``rollout``;
- ``uniform-noise``: no mask, but random tokens in the canvas at the end of a sample, each by the
  chance of the sample's time; the default of models that are trained on such noise;
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

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

from torch import Tensor

from qdc.numerics.moment import TOKENS
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
from qdc.passkit.experts import parts_of, weighed_together
from qdc.passkit.guided import WeighedOptions
from qdc.streaming.work import FP32


class CalibrateMcs(WeighedOptions):
    """Collect each stage's second moment over masked samples.

    Inside ``stages(...)`` every stage is calibrated on the already quantized stream; outside it, on
    the full-precision stream.
    """

    name: ClassVar[str] = "calibrate-mcs"
    provides: ClassVar[Kinds] = (Moment,)
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "samples"
    reads_all: ClassVar[bool] = False

    def run(self, unit: Unit) -> None:
        """Advance the stream to each stage and add up the value that it reads."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch), split=True)
        for wave in unit.layers_by_wave():
            stream.enter(wave[0][0])
            sources = self.sources(unit, stream, wave)
            moments = {
                stage.value: MomentAccumulator(layers[0].columns, unit.device)
                for stage, layers in wave
            }
            weights = {stage.value: self.counted(unit, stream, layers) for stage, layers in wave}
            stages = [stage for stage, _ in wave]
            add = partial(self.add, stream, stages, weights, sources, moments)
            unit.accumulate_all([(layers, [moments[s.value]]) for s, layers in wave], add)
            unit.share_wave(wave, partial(self.note, unit, sources, moments))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)

    def add(
        self,
        stream: Stream,
        stages: list[Stage],
        weights: Mapping[str, Tensor | None],
        sources: Mapping[str, Source],
        moments: Mapping[str, MomentAccumulator],
    ) -> None:
        """Add up what the stages read; tokens count as ``f32[samples, length]`` say, if given."""
        pooled = {value for value, source in sources.items() if source.pooled}
        for part in parts_of(stream, stages, pooled):
            for found in weighed_together(stream, part, weights, {}, pooled=pooled):
                for stage in part:
                    reading, share = found.pop(stage.value)
                    moments[stage.value].add(reading.value, share)
                    del reading, share  # or they are held while the next batch is computed

    def note(
        self,
        unit: Unit,
        sources: Mapping[str, Source],
        moments: Mapping[str, MomentAccumulator],
        stage: Stage,
        layers: tuple[Node, ...],
    ) -> None:
        """Keep the sum over all samples and write it on layers of a stage."""
        source, moment = sources[stage.value], moments[stage.value]
        note = Moment(
            tensor=unit.put(table_key(stage.value, "moment"), moment.value()),
            samples=self.samples,
            tokens=source.counted(moment.tokens),
            masked=source.masked,
            geometry=self.chosen_geometry,
            masked_weight=self.masked_weight,
            token_weights=self.token_weights,
            routed=source.routed,
            left_out=source.left_out,
        )
        moment.clear()  # the sum is larger than what is kept of it
        for node in layers:
            unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """One stream, and the sum of a stage while it grows."""
        stream = self.travel(unit)
        for wave in unit.layers_by_wave():
            stages = [stage for stage, _ in wave]
            stream.enter(stages[0])
            sums = [8 * layers[0].columns ** 2 for _, layers in wave]
            for part in parts_of(stream, stages):
                values = [stage.value for stage in part]
                nbytes, work = stream.cost(values)
                summed = sum(
                    2 * stream.tokens_of(s) * unit.graph[s.layers[0]].columns ** 2 for s in part
                )
                unit.work(nbytes + sum(sums), work + Work(products=summed))
                # A batch is turned before it is multiplied, which a product may do once more.
                rows = [min(TOKENS, stream.rows_read(s)) for s in part]
                widest = max(unit.graph[s.layers[0]].columns for s in part)
                unit.work(stream.given(values) + 2 * FP32 * max(rows) * widest + sum(sums))
            for place, (stage, layers) in enumerate(wave):
                unit.work(sum(sums[place:]) + sums[place] // 2)
                self.expect_moment(unit, stage, layers, round(stream.tokens_of(stage)))
        if unit.whole_region and unit.region is not None:
            stream.leave(unit.region)
