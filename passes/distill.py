"""Tune scales, norm gains and biases of the whole model towards the original's predictions.

Source: end-to-end tuning of what is continuous, codes fixed, as in EfficientQAT (arXiv 2407.11062)
and in the last step of QuIP# and QTIP (arXiv 2402.04396, 2406.11235); the loss is the divergence
KL(original, quantized) at masked positions of the calibration states, with ``geometry=clean`` at
all of them, so no token of the text is taught. Regions are computed one after the other forwards,
with states waiting between them, and again one by one backwards with gradients: never more than one
of them is in memory. Adam; part of the samples is held out and decides after every round which
state is kept: a round that gains nothing is taken back, and steps are a quarter from there on. They
decide at the end, rounded to what is stored, whether anything changes at all.

    before   %h0.q = linear %x   w f16[64,512]
                 @trellis   2 bits   window 10   rotated by 64 and 512   output error 3.3e-02
    after        @trellis   2 bits   window 10   rotated by 64 and 512
             %head = linear %y   w f16[2048,512]
                 @distilled  0.0312 to 0.0264 nats at 4,103 held-out positions   3,370 numbers

Whatever matrices are not lowered, and embedding and head, stay as they are. It stands behind all
lowerings and before pack; the layers' own errors are of before it, and are dropped.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.ir.distilled import Distilled
from qdc.numerics.adam import Adam
from qdc.passkit import (
    Batches,
    CalibrationOptions,
    Field,
    Forecast,
    InvalidCalibration,
    Kinds,
    LayerGraph,
    Lowered,
    Tuned,
    Unit,
    Work,
)
from qdc.passkit.calibration_fields import WEIGHTS
from qdc.passkit.counted import CountedPositions
from qdc.passkit.course import Course, batches_of, pieces
from qdc.passkit.end_loss import EndLoss
from qdc.passkit.head import POSITIONS, output_head
from qdc.passkit.trial import Trial
from qdc.passkit.tuning import Rates, Tuning
from qdc.streaming.memory import give_back
from qdc.streaming.stream import Stream
from qdc.streaming.work import FP32

WITHOUT_HEAD = "leave distill out of the pipeline; polish needs no predictions"
WEIGHTS_HELD = 4
"""A region's weights in fp32 at a time: as they are made, a copy with its gradient, one decoded."""
HEAD_COPIES = 5
"""Logits of some positions at a time: of both models, both probabilities, a difference."""
SMALLER = 4
"""How many times smaller steps are after a round that has gained nothing."""
Schedule = Literal["linear", "cosine", "constant"]


class Distill(CalibrationOptions):
    """Tune scales, norm gains and biases of the whole model towards the original's predictions."""

    name: ClassVar[str] = "distill"
    requires: ClassVar[Kinds] = (Lowered,)
    provides: ClassVar[Kinds] = (Lowered,)
    annotates: ClassVar[Kinds] = (Tuned, Distilled)
    barrier: ClassVar[bool] = True
    unread: ClassVar[tuple[str, ...]] = WEIGHTS
    instead: ClassVar[str] = ": predictions count, all alike"

    batch: int = Field(default=4, ge=1, description="sequences computed at once")
    together: int = Field(default=1, ge=1, description="batches whose gradients make one step")
    rounds: int = Field(default=4, ge=1, le=10_000, description="times that all samples are seen")
    scale_rate: float = Field(
        default=0.003, ge=0, le=1, description="first step of a scale, as a share of its size"
    )
    norm_rate: float = Field(
        default=0.003,
        ge=0,
        le=1,
        description="first step of norm gains and biases, as a share of their size",
    )
    schedule: Schedule = Field(default="linear", description="how steps become smaller")
    held_out: float = Field(
        default=0.125, gt=0, le=0.5, description="share of the samples that decides what is kept"
    )

    def check(self, graph: LayerGraph) -> None:
        """Refuse a model without a head."""
        super().check(graph)
        output_head(graph, WITHOUT_HEAD)

    def run(self, unit: Unit) -> None:
        """Tune the model, then compare it with what it was."""
        batches, training, held = self.batches(unit)
        streams, course, loss = self.prepare(unit, batches)
        start = batches_of(streams[0])
        rates = Rates(self.scale_rate, self.norm_rate)
        tuning = Tuning(unit, course.pieces, course.states, rates)
        trial = Trial(course, loss, start, tuning)
        before = trial.stored(held)
        self.refuse_nothing(sum(map(loss.positions, training)), before.positions)
        self.tune(trial, training, held)
        after = self.outcome(trial, held)
        improved = after < before.mean
        if improved:
            tuning.write()
        give_back()
        unit.count(*streams)
        node = list(unit.graph)[-1]
        note = Distilled(
            before=before.mean,
            after=after if improved else before.mean,
            positions=before.positions,
            numbers=tuning.count,
        )
        unit.annotate(node, note)
        found = {"before": before.mean, "after": after, "positions": before.positions}
        unit.remark("passed" if improved else "missed", node, **found)

    def forecast(self, unit: Forecast) -> None:
        """The original once; then each round runs every region twice forwards and once back."""
        for codec in filter(None, map(unit.codec, unit.layers())):
            codec.rescaling()  # or it refuses
        stream, reference = self.travel(unit), self.travel(unit, original=True)
        regions, (samples, length) = unit.graph.regions, stream.tokens.shape
        for each in (stream, reference):
            each.start(regions[0])
        waiting = reference.kept_bytes() // unit.held_bytes
        held = max(1, math.ceil(self.held_out * samples / (self.timesteps or 1))) / samples
        held = min(1, held * (self.timesteps or 1))
        runs = self.rounds * (4 * (1 - held) + held) + 3 * held
        step = min(samples, self.batch * self.together) / samples
        unit.keep_states("targets", waiting)
        unit.keep_states("layers", sum(node.rows * node.columns for node in unit.layers()))
        unit.keep_states("step", math.ceil((len(regions) + 1) * step * waiting))
        (name,) = output_head(unit.graph, WITHOUT_HEAD).layers
        head = unit.graph[name]
        passing = FP32 * (2 * head.rows * head.columns + HEAD_COPIES * POSITIONS * head.rows)
        products = 2 * head.rows * head.columns * samples * length
        unit.work(passing, Work(products=(runs + 1) * products))
        for region in regions:
            nbytes, once = reference.way_back(reference.results(region))
            layers = [node for node in unit.layers() if node.name in region.nodes]
            made = sum(FP32 * node.rows * node.columns for node in layers)
            unit.work(WEIGHTS_HELD * made + nbytes, once.times(runs))
            reference.leave(region)
        for what in ("targets", "layers", "step"):
            unit.drop_states(what)

    def batches(self, unit: Unit) -> tuple[Batches, list[int], list[int]]:
        """The samples in random order; places of the batches to train on, and of those held out.

        Raises:
            InvalidCalibration: there is just one sample.
        """
        drawn, each = self.draw(unit), self.timesteps or 1
        samples = len(drawn.tokens) // each
        if samples < 2:
            raise InvalidCalibration(
                f"{self.name} holds samples out to decide what is kept, and there is 1",
                help=f"raise --samples or {self.name}{{samples=...}}",
            )
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(samples, generator=generator)
        rows = (order[:, None] * each + torch.arange(each)).flatten()
        held = each * max(1, math.ceil(self.held_out * samples))
        parts = [drawn.select(part).batches(self.batch) for part in (rows[:-held], rows[-held:])]
        numbers = range(len(parts[0]) + len(parts[1]))
        return parts[0] + parts[1], list(numbers[: len(parts[0])]), list(numbers[len(parts[0]) :])

    def prepare(
        self, unit: Unit, batches: Batches
    ) -> tuple[tuple[Stream, Stream], Course, EndLoss]:
        """Run the original once.

        Returns:
            Two streams, one before the first region and the original's before the head; the way
            between both; the original's predictions.
        """
        head, everywhere = output_head(unit.graph, WITHOUT_HEAD), self.chosen_geometry == "clean"
        read, (name,) = unit.original_weights(), head.layers
        reference = unit.loose_stream(batches, read)
        found = tuple(piece for piece, _ in pieces(reference, head))
        loss = EndLoss(
            original=read(name),
            now=present(unit, name),
            counted=CountedPositions.of(unit.model, everywhere=everywhere),
            states=reference.states,
            cap=unit.model.logit_cap,
        )
        for index, values in enumerate(reference.compute((head.value,))):
            loss.add(batches[index], reference.segments_of(index), values[head.value])
        stream = unit.loose_stream(batches, partial(present, unit), as_stored=True)
        stream.start(unit.graph.regions[0])
        return (stream, reference), Course(stream.executor, stream.states, found), loss

    def refuse_nothing(self, *positions: int) -> None:
        """Refuse samples without a position that counts, to train on or held out."""
        if not all(positions):
            raise InvalidCalibration(
                "no position of the samples held out, or of the others, is masked",
                help=f"raise --samples or {self.name}{{samples=...}}",
            )

    def tune(self, trial: Trial, training: Sequence[int], held: Sequence[int]) -> None:
        """Leave the numbers of the best round, those of the start included.

        A round without gain is taken back, and steps are smaller from there on: layers that have
        lost little are spoilt by steps that mend others.
        """
        tuning = trial.tuning
        numbers = tuning.numbers()
        if not numbers:
            return  # every rate is 0
        each, part = -(-len(training) // self.together), 1.0
        optimizer = Adam(numbers)
        generator = torch.Generator().manual_seed(self.seed)
        best, kept = trial.now(held).mean, tuning.snapshot()
        for number in range(self.rounds):
            order = [training[i] for i in torch.randperm(len(training), generator=generator)]
            for step, first in enumerate(range(0, len(order), self.together)):
                share = part * self.share((number + step / each) / self.rounds)
                optimizer.forget()
                trial.differentiate(order[first : first + self.together])
                optimizer.step(share)
            found = trial.now(held).mean
            if found < best:
                best, kept = found, tuning.snapshot()
            else:
                tuning.restore(kept)
                optimizer, part = Adam(numbers), part / SMALLER
        tuning.restore(kept)

    def share(self, progress: float) -> float:
        """What a step counts of the first one, after this share of all steps."""
        if self.schedule == "constant":
            return 1.0
        if self.schedule == "cosine":
            return (1 + math.cos(math.pi * progress)) / 2
        return 1 - progress

    @staticmethod
    def outcome(trial: Trial, held: Sequence[int]) -> float:
        """The mean divergence as stored; infinite where a scale does not fit its dtype."""
        try:
            return trial.stored(held).mean
        except OverflowError:
            return math.inf


def present(unit: Unit, name: str) -> dict[str, Tensor]:
    """The parameters of a node outside of the regions as they stand, f32 on the device."""
    node, tuned = unit.graph[name], unit.graph.get(name, Tuned)
    roles = [p.role for p in node.parameters]
    roles += () if tuned is None else tuned.added(node)
    return {role: unit.current(node, role) for role in roles}
