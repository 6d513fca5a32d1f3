"""How the inputs of each layer change with the mask ratio, measured on the original model.

The same clean windows are masked at each ratio (a larger mask contains a smaller one), and compared
with themselves without masks. Other clean windows show how much of a difference is mere chance.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Literal, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCalibration
from qdc.frontend.tracer import Program
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import Stage
from qdc.ir.text_use import Pack, TextUse
from qdc.models.layers import takes_windows
from qdc.numerics.shift import (
    Shift,
    Statistics,
    StatisticsAccumulator,
    leading_eigenvectors,
    shift,
    together,
)
from qdc.passkit.experts import Reading, read
from qdc.passkit.geometry import Masked, noised, scattered
from qdc.passkit.predictor import Predictor
from qdc.passkit.samples import draw_samples
from qdc.passkit.tmas import PROMPT, Aims, choose
from qdc.passkit.trajectory import Sampler, trajectories
from qdc.streaming.apart import require_apart
from qdc.streaming.batches import Batches
from qdc.streaming.original import original_stream, original_weights
from qdc.streaming.stream import Stream
from qdc.text.source import TextSource
from qdc.units import Progress


class Sampling(BaseModel):
    """What is drawn, and what is compared."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    samples: int = Field(default=16, ge=1, le=1 << 20)
    length: int = Field(ge=2)
    pack: Pack = "documents"
    seed: int = Field(default=0, ge=0, lt=1 << 62)
    ratios: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9)
    geometry: Literal["mcs", "tmas", "uniform-noise"] = "mcs"
    """What masks at each ratio: chance, or the model's own sampler; or chance that puts random
    tokens into the canvas of a model that has no mask token."""
    steps: int = Field(default=16, ge=1, le=1 << 12)
    """Of a whole text, of the sampler."""
    top: int = Field(default=8, ge=1)
    """Eigenvectors whose space is compared."""
    batch: int = Field(default=8, ge=1)


class StageShift(NamedTuple):
    """One stage at one ratio, against the same windows without masks."""

    region: str
    value: str
    """What the stage's layers read."""
    layers: tuple[str, ...]
    ratio: float
    """Share of the tokens that is masked, for ``tmas`` of those that the sampler writes; 0 stands
    for other windows without masks."""
    masked_tokens: int
    every: Shift | None
    """All positions; None where the reference is zero, or where an expert sees none of them."""
    masked: Shift | None
    """Masked positions alone; None without any."""
    visible: Shift | None
    """Positions that are not masked."""


class Inspection(NamedTuple):
    """The shifts of all stages, and what the reference windows were made of."""

    shifts: list[StageShift]
    use: TextUse


def inspect(
    program: Program,
    checkpoint: Checkpoint,
    source: TextSource,
    encode: Callable[[str], list[int]],
    sampling: Sampling,
    device: torch.device,
    progress: Progress | None = None,
) -> Inspection:
    """Compare every stage at every ratio, stage by stage in execution order.

    Memory: the weights of one region, one value for each position of all ratios (on the CPU), and
    four moments of one stage.

    Raises:
        InvalidCalibration: the text is too short, or an eigenspace is wider than a layer.
    """
    graph = program.graph
    narrowest = min(node.columns for node in graph.layers())
    if sampling.top > narrowest:
        raise InvalidCalibration(
            f"found a layer of {narrowest} inputs, need {sampling.top} for the eigenspace",
            help=f"choose a top of at most {narrowest}",
        )
    if sampling.pack == "pad":
        require_apart(program, isolate=False)
    states = _States(program, checkpoint, source, encode, sampling, device)
    stream = original_stream(program, checkpoint, states.batches(), device)
    found: list[StageShift] = []
    stages = [
        (region, stage) for region in graph.regions for stage in graph.waves[region.name].each()
    ]
    for done, (region, stage) in enumerate(stages):
        stream.enter(stage)
        for ratio, masked_tokens, shifts in _compare(stream, stage, states, device):
            found.append(
                StageShift(region.name, stage.value, stage.layers, ratio, masked_tokens, *shifts)
            )
        if done + 1 == len(stages) or stages[done + 1][0] is not region:
            stream.leave(region)
        if progress is not None:
            progress(done + 1, len(stages))
    return Inspection(found, states.use)


class _States:
    """The windows: the reference, other clean ones, and the reference masked at each ratio."""

    def __init__(
        self,
        program: Program,
        checkpoint: Checkpoint,
        source: TextSource,
        encode: Callable[[str], list[int]],
        sampling: Sampling,
        device: torch.device,
    ) -> None:
        self.sampling, model = sampling, program.graph.model
        size = sampling.samples, sampling.length
        pack = sampling.pack
        rolled = sampling.geometry == "tmas"
        visible = PROMPT if rolled and not source.dialogues else 0
        first, second = (
            draw_samples(source, encode, model, *size, sampling.seed + turn, visible, pack)
            for turn in range(2)
        )
        (clean, maskable, self.use, apart), nothing = first, torch.zeros_like(first.maskable)
        self.parts = [(clean, nothing), (second.clean, nothing)]
        self.segments = [apart, second.segments]
        self.segments += [apart] * len(sampling.ratios)
        if rolled:
            predictor = Predictor(
                graph=program.graph,
                start=lambda batches: original_stream(program, checkpoint, batches, device),
                read=original_weights(program, checkpoint, device),
                windowed=takes_windows(program.module),
            )
            self.parts += _rolled(predictor, clean, maskable, sampling, apart)
            return
        for ratio in sampling.ratios:
            times = torch.full((sampling.samples,), ratio)
            self.parts.append(_at_times(clean, maskable, times, model, sampling))

    def batches(self) -> Batches:
        pairs = zip(self.parts, self.segments, strict=True)
        size = self.sampling.batch
        first, *rest = (Batches.split(tokens, apart, size) for (tokens, _), apart in pairs)
        return sum(rest, first)

    def masked(self) -> Tensor:
        """``bool[samples of all parts, length]``."""
        return torch.cat([masked for _, masked in self.parts])

    def part(self) -> int:
        """Batches of a part."""
        return -(-self.sampling.samples // self.sampling.batch)


def _at_times(
    clean: Tensor, maskable: Tensor, times: Tensor, model: ModelFacts, sampling: Sampling
) -> Masked:
    """Windows masked, or noised, by chance at times ``f32[samples]``."""
    if sampling.geometry == "uniform-noise":
        assert model.canvas is not None, "the command has refused every other model"
        return noised(clean, maskable, times, model.vocabulary, model.canvas, sampling.seed)
    return scattered(clean, maskable, times, model.mask, sampling.seed)


def _rolled(
    predictor: Predictor,
    clean: Tensor,
    maskable: Tensor,
    sampling: Sampling,
    segments: Tensor | None,
) -> list[Masked]:
    """For each ratio the state of each window's trajectory that is nearest to it."""
    sampler = Sampler(steps=sampling.steps, seed=sampling.seed)
    least, places = min(sampling.ratios, default=1.0), maskable.sum(1)

    def enough(decided: Tensor, steps: Tensor) -> Tensor:
        return decided >= (1 - least) * places

    found = trajectories(predictor, clean, maskable, sampler, enough, sampling.batch, segments)
    rows, parts = torch.arange(len(clean)), []
    for ratio in sampling.ratios:
        way = torch.full((len(clean),), 1 - ratio, dtype=torch.float64)
        chosen, _ = choose(found, Aims(torch.zeros_like(rows), way), 1, "ratio")
        parts.append(found.states(rows, chosen, predictor.graph.model.mask))
    return parts


def _compare(
    stream: Stream, stage: Stage, states: _States, device: torch.device
) -> Iterator[tuple[float, int, tuple[Shift | None, ...]]]:
    """Yield ratio, masked tokens, and the shifts of all, masked and visible positions."""
    readings = read(stream, stage, states.masked())
    size = states.part()
    _, reference = _statistics(islice(readings, size), device)
    basis = None
    if reference is not None:
        basis = leading_eigenvectors(reference.moment, states.sampling.top)
    for ratio in (0.0, *states.sampling.ratios):
        hidden, visible = _statistics(islice(readings, size), device)
        seen = [part for part in (hidden, visible) if part is not None]
        every = together(seen) if seen else None
        yield (
            ratio,
            0 if hidden is None else hidden.tokens,
            tuple(
                # An expert may see no token of the reference, or none of these.
                None
                if part is None or reference is None or basis is None
                else shift(part, reference, basis)
                for part in (every, hidden, visible)
            ),
        )


def _statistics(
    readings: Iterable[Reading], device: torch.device
) -> tuple[Statistics | None, Statistics | None]:
    """Statistics of masked and of visible positions of one part."""
    parts: tuple[StatisticsAccumulator, StatisticsAccumulator] | None = None
    for reading in readings:
        value = reading.value
        if parts is None:
            columns = value.shape[-1]
            parts = StatisticsAccumulator(columns, device), StatisticsAccumulator(columns, device)
        here = reading.facts.to(value.device)
        parts[0].add(value[here])
        parts[1].add(value[~here])
    assert parts is not None, "a part has at least one batch"
    return parts[0].value(), parts[1].value()
