"""What passes that calibrate share: the options of their samples, and the drawing of them."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.ir.annotations import Moment
from qdc.ir.calibration_use import SampledStates
from qdc.ir.graph import LayerGraph, ModelFacts, Node, Stage
from qdc.ir.text_use import Pack
from qdc.passkit import geometry
from qdc.passkit.geometry import Masked
from qdc.passkit.head import output_head
from qdc.passkit.predictor import Predictor
from qdc.passkit.rollout import rollout, steps_to
from qdc.passkit.samples import Samples, draw_samples
from qdc.passkit.tmas import PROMPT, SHARES, Tmas, Way, sampled
from qdc.passkit.trajectory import Sampler
from qdc.pipeline.passbase import Pass
from qdc.runtime.decoding.options import LONGEST_NAME
from qdc.streaming.batches import PADDING, Batches
from qdc.streaming.calibration import Calibration
from qdc.streaming.forecast import Forecast
from qdc.streaming.streamforecast import StreamForecast
from qdc.streaming.unit import Unit
from qdc.text.source import TextSource

Geometry = Literal["mcs", "uniform", "block-diffusion", "rollout", "tmas", "clean"]
BLOCK_LENGTH, STEPS = 32, 8
READ_BY = {
    "prefix": ("mcs", "block-diffusion", "rollout", "tmas"),
    "timesteps": ("mcs", "uniform", "block-diffusion", "rollout", "tmas"),
    "clean_copy": ("mcs", "block-diffusion", "rollout"),
    "block_length": ("block-diffusion", "rollout", "tmas"),
    "steps": ("rollout", "tmas"),
    "shares": ("tmas",),
    "way": ("tmas",),
    "strategy": ("tmas",),
    "masked_weight": ("mcs", "uniform", "block-diffusion", "rollout", "tmas"),
}
"""Options that only some geometries read; with another one they are refused."""


@dataclass(frozen=True)
class States:
    """Calibration samples as the model sees them; with timesteps, T rows a sample in a row."""

    clean: Tensor
    """``i64[N, length]``: the text."""
    tokens: Tensor
    """``i64[N, length]``: what goes into the model. Where it is visible it is the clean text, but
    for ``rollout`` and ``tmas``, which hold the model's own tokens behind the prompt."""
    masked: Tensor
    """``bool[N, length]``: where ``tokens`` holds the mask token."""
    weights: Tensor
    """``f32[N, length]``: what each position counts in a second moment; 1 where it is visible, 0
    where it is padding."""
    segments: Tensor | None = None
    """``i64[N, length]``: which positions of a row see each other (``qdc.streaming.batches``); None
    if all do, and none is padding."""

    def batches(self, size: int) -> Batches:
        """The tokens, ``i64[size, length]`` each, with their segments; the last may be smaller."""
        return Batches.split(self.tokens, self.segments, size)

    def select(self, rows: Tensor) -> "States":
        """Some rows ``i64[n]``, in their order."""
        segments = None if self.segments is None else self.segments[rows]
        return States(
            self.clean[rows], self.tokens[rows], self.masked[rows], self.weights[rows], segments
        )


class CalibrationOptions(Pass):
    """A pass that draws samples from the calibration text.

    Two passes with equal options see equal samples: they are a function of options and text alone,
    and of the original model for ``rollout`` and ``tmas``.
    """

    reads_calibration: ClassVar[bool] = True

    samples: int = Field(default=128, ge=1, le=1 << 20, description="sequences to draw")
    length: int | None = Field(
        default=None, ge=2, description="tokens of a sequence; the model's longest if not given"
    )
    prefix: float | None = Field(
        default=None,
        ge=0,
        lt=1,
        description="share of a sequence kept visible at its beginning; 0 if not given, "
        f"and {PROMPT} for tmas on text without prompts",
    )
    seed: int = Field(default=0, ge=0, lt=1 << 62, description="seed of windows and masks")
    batch: int = Field(default=8, ge=1, description="sequences computed at once")
    pack: Pack = Field(
        default="documents",
        description="documents: joined, cut at a window's end; within: long documents alone; "
        "pad: one document each, padded",
    )
    isolate: bool = Field(
        default=False, description="attention does not cross the documents of a window"
    )
    geometry: Geometry = Field(default="mcs", description="which tokens are masked")
    timesteps: int | None = Field(
        default=None,
        ge=1,
        le=1 << 16,
        description="see every sample at this many times; at one time each if not given",
    )
    clean_copy: bool = Field(default=False, description="let the grid of times begin at 0")
    block_length: int | None = Field(
        default=None,
        ge=1,
        description=f"tokens of a block; {BLOCK_LENGTH} for block-diffusion, all for rollout "
        "and tmas if not given",
    )
    steps: int = Field(
        default=STEPS, ge=1, le=1 << 12, description="denoising steps of a whole rollout"
    )
    shares: tuple[float, ...] = Field(
        default=SHARES,
        min_length=2,
        max_length=64,
        description="of the states, from each of as many equal stretches of a trajectory",
    )
    way: Way = Field(default="ratio", description="stretches of places decided, or of steps")
    strategy: str | None = Field(
        default=None,
        max_length=LONGEST_NAME,
        description="that the sampler of tmas decides by; the family's own if not given",
    )
    masked_weight: float = Field(
        default=1, gt=0, le=1e6, description="what a masked position counts against a visible one"
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "CalibrationOptions":
        for name, readers in READ_BY.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and self.geometry not in readers:
                raise ValueError(
                    f"geometry {self.geometry} does not read {name.replace('_', '-')}, "
                    f"which is for {', '.join(readers)}"
                )
        if any(share < 0 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares add up to {sum(self.shares):g}, and all states are 1")
        if self.isolate and self.pack != "documents":
            raise ValueError(
                f"pack {self.pack} does not read isolate: its windows are of one document each"
            )
        return self

    def check(self, graph: LayerGraph) -> None:
        """Refuse samples that are longer than the model takes."""
        if self.length is not None and self.length > graph.model.max_length:
            raise InvalidCalibration(
                f"samples of {self.length} tokens are asked for, "
                f"the model takes {graph.model.max_length}",
                help=f"the longest is --length {graph.model.max_length}, which it is if not given",
            )
        if self.geometry == "tmas":
            output_head(graph, "choose another geometry")
            if graph.model.mask_token_id is not None:
                self.tmas().sampler.make(graph.model)
                self.tmas().sampler.block_of(graph.model)

    def without_masks(self) -> Self | None:
        """The same pass with ``geometry=clean``, and without the options that only masks read."""
        fields = type(self).model_fields
        unread = {name: fields[name].default for name in READ_BY}
        return self.model_copy(update={"geometry": "clean", **unread})

    def draw(self, unit: Unit) -> States:
        """Draw the samples and mask them.

        Reads the text and, for ``rollout`` and ``tmas``, streams the original model, about once a
        step.

        Raises:
            InvalidCalibration: the text is too short, too little, or not what the tokenizer knows.
            UnsupportedModel: documents are to be kept apart, or padding is, and something in the
                model would mix them.
        """
        if self.segmented:
            unit.check_apart(isolate=self.isolate)
        clean, maskable, use, segments = self.draw_clean(unit.calibration(), unit.model)
        unit.note_text(use)
        found = None
        if self.geometry == "tmas":
            # A sample is rolled out once, however many of its states are seen.
            found = self._sample(unit, clean, maskable, segments)
        repeated = self.timesteps or 1
        clean, maskable = (t.repeat_interleave(repeated, 0) for t in (clean, maskable))
        if segments is not None:
            segments = segments.repeat_interleave(repeated, 0)
        tokens, masked = found or self._mask(unit, clean, maskable, segments)
        weights = self.weigh(masked)
        if segments is not None:
            weights = weights * (segments != PADDING)
        return States(clean, tokens, masked, weights, segments)

    def draw_clean(self, text: Calibration, model: ModelFacts) -> Samples:
        """Draw the samples without masks; the same ones are drawn once of a text.

        Raises:
            InvalidCalibration: the text is too short, too little, or not what the tokenizer knows.
        """
        rows, longest = text.source.rows, model.max_length
        length = self.length or (longest if rows is None else min(longest, rows.shape[1]))
        visible = self.visible(text.source)
        asked = (self.samples, length, self.seed, visible, self.pack, self.isolate)
        if asked not in text.drawn:
            text.drawn[asked] = draw_samples(
                text.source, text.encode, model, *asked[:-1], isolate=self.isolate
            )
        found = text.drawn[asked]
        assert isinstance(found, Samples)
        return found

    @property
    def segmented(self) -> bool:
        """Whether not all positions of a sample see each other."""
        return self.isolate or self.pack == "pad"

    def travel(self, unit: Forecast, *, original: bool = False) -> StreamForecast:
        """The stream of this pass in a forecast; rollouts run the model on the way to it."""
        length = self.length or unit.model.max_length
        rows = self.samples * (self.timesteps or 1)
        if self.segmented and not unit.started:
            unit.check_apart(isolate=self.isolate)
        if not unit.started:
            self._foresee_rollouts(unit, length)
        apart = self.segmented
        return unit.stream(rows, length, self.batch, original=original, segmented=apart)

    def expect_moment(
        self, unit: Forecast, stage: Stage, layers: tuple[Node, ...], tokens: int
    ) -> None:
        """Say that the layers of a stage will carry a moment over so many tokens."""
        columns = layers[0].columns
        note = Moment(
            tensor=unit.put(stage, "moment", columns, columns),
            samples=self.samples,
            tokens=max(1, tokens),
            masked=0,
            geometry=self.geometry,
            masked_weight=self.masked_weight,
        )
        for node in layers:
            unit.annotate(node, note)

    def weigh(self, masked: Tensor) -> Tensor:
        """Weights ``f32[...]`` of positions, from the mask ``bool[...]``."""
        return 1 + (self.masked_weight - 1) * masked.float()

    def times(self) -> Tensor:
        """The time of each row, ``f32[samples * timesteps]``: even, or random for ``uniform``."""
        many = self.timesteps
        if self.geometry == "uniform":
            if many is None:
                return geometry.stratified(self.samples, self.seed)
            rows = (geometry.stratified(many, self.seed, i) for i in range(self.samples))
            return torch.cat(list(rows))
        if many is None:
            return geometry.grid(self.samples, clean_copy=self.clean_copy)
        return geometry.grid(many, clean_copy=self.clean_copy).repeat(self.samples)

    def visible(self, source: TextSource) -> float:
        """Share of a window at its beginning that is never masked."""
        if self.prefix is not None:
            return self.prefix
        return PROMPT if self.geometry == "tmas" and not source.dialogues else 0

    def tmas(self) -> Tmas:
        """What is sampled, with ``geometry=tmas``."""
        sampler = Sampler(self.strategy, self.steps, self.block_length, self.seed)
        return Tmas(sampler, self.shares, self.way, self.timesteps or 1)

    def foreseen_states(self, model: ModelFacts) -> SampledStates | None:
        """The states that will be sampled; None where none are."""
        if self.geometry != "tmas":
            return None
        return self.tmas().foreseen(self.samples, self.tmas().sampler.text(model))

    def _foresee_rollouts(self, unit: Forecast, length: int) -> None:
        """Sweeps of the original model in front of the calibration itself."""
        if self.geometry == "rollout":
            rows = self.samples * (self.timesteps or 1)
            sweeps = steps_to(self.times(), self.steps).double().mean().item()
        elif self.geometry == "tmas":
            rows = self.samples
            visible = PROMPT if self.prefix is None else self.prefix
            steps = self.tmas().sampler.sweeps(length, int(visible * length), unit.model)
            sweeps = (steps * self.tmas().furthest(rows)).ceil().mean().item()
        else:
            return
        unit.sweep(rows, length, self.batch, times=sweeps, segmented=self.segmented)

    def _sample(
        self, unit: Unit, clean: Tensor, maskable: Tensor, segments: Tensor | None
    ) -> Masked:
        predictor = Predictor.of(unit)
        states, use = sampled(predictor, clean, maskable, self.tmas(), self.batch, segments)
        unit.note_states(use)
        return states

    def _mask(
        self, unit: Unit, clean: Tensor, maskable: Tensor, segments: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.geometry == "clean":
            return geometry.unmasked(clean)
        mask_id, seed = unit.model.mask, self.seed
        times = self.times()
        if self.geometry == "block-diffusion":
            size = self.block_length or BLOCK_LENGTH
            return geometry.block_diffusion(clean, maskable, times, mask_id, seed, size)
        if self.geometry == "rollout":
            return rollout(
                unit, clean, maskable, times, self.steps, self.block_length, self.batch, segments
            )
        return geometry.scattered(clean, maskable, times, mask_id, seed)
