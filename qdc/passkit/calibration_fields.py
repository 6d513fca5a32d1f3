"""Options of passes that calibrate: what is drawn, what is masked, what tokens weigh."""

from typing import ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.errors import InvalidCalibration, UnsupportedModel
from qdc.ir.calibration_use import SampledStates
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph
from qdc.ir.text_use import Pack
from qdc.passkit import geometry
from qdc.passkit.certainty import BASES, WITHOUT, TokenWeights
from qdc.passkit.head import output_head
from qdc.passkit.tmas import PROMPT, SHARES, Tmas, Way
from qdc.passkit.trajectory import OWN, Sampler
from qdc.pipeline.passbase import Pass
from qdc.runtime.decoding.options import LONGEST_NAME
from qdc.text.source import TextSource

Geometry = Literal["mcs", "uniform", "block-diffusion", "rollout", "tmas", "uniform-noise", "clean"]
USUAL: Geometry = "mcs"
NOISE: Geometry = "uniform-noise"
BLOCK_LENGTH, STEPS = 32, 8
READ_BY = {
    "prefix": ("mcs", "block-diffusion", "rollout", "tmas"),
    "timesteps": ("mcs", "uniform", "block-diffusion", "rollout", "tmas", NOISE),
    "clean_copy": ("mcs", "block-diffusion", "rollout", NOISE),
    "block_length": ("block-diffusion", "rollout", "tmas"),
    "steps": ("rollout", "tmas"),
    "shares": ("tmas",),
    "way": ("tmas",),
    "strategy": ("tmas",),
    "masked_weight": ("mcs", "uniform", "block-diffusion", "rollout", "tmas", NOISE),
}
"""Options that only some geometries read; with another one they are refused."""
WEIGHTS = "masked_weight", "token_weights", "certainty_base", "certainty_exponent"
"""Options of what tokens count."""
UNDRAWN = "batch", *WEIGHTS
"""Options that have no part in which tokens are drawn, nor in which of them are masked."""


class CalibrationFields(Pass):
    """A pass with these options; ``CalibrationOptions`` draws by them."""

    reads_calibration: ClassVar[bool] = True
    reads_guidance: ClassVar[bool] = False
    """Whether tokens may be weighed by what ``guide`` has found."""
    unread: ClassVar[tuple[str, ...]] = ()
    """Options of these that a pass does not read: refused, and left out of its description."""
    instead: ClassVar[str] = ""
    """What counts in their place, as errors say it."""

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
    geometry: Geometry | None = Field(
        default=None,
        description="which tokens are masked; mcs if not given, block-diffusion where attention "
        "goes by blocks, uniform-noise where canvases are written from noise",
    )
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
        description=f"tokens of a block; the model's own or {BLOCK_LENGTH} for block-diffusion, "
        "all for rollout and tmas if not given",
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
    strategy: str = Field(
        default=OWN,
        min_length=1,
        max_length=LONGEST_NAME,
        description=f"that the sampler of tmas decides by; {OWN} is that of the family's code",
    )
    masked_weight: float = Field(
        default=1,
        gt=0,
        le=1e6,
        description="what a masked position, or one of noise, counts against a visible one",
    )

    token_weights: TokenWeights = Field(
        default="equal",
        description="weigh tokens by how sure the original model is there, as DLLMQuant, or as its "
        "reimplementation (linear); guided: by how much predictions hang on them, as guide says",
    )
    certainty_base: tuple[float, float] | None = Field(
        default=None,
        description="of masked and of visible tokens; 1,0.7 for certainty, 0.5,0.5 for "
        "certainty-linear if not given",
    )
    certainty_exponent: float | None = Field(
        default=None,
        ge=0,
        le=8,
        description="of base and confidence together; 2 for certainty, 1 for certainty-linear if "
        "not given",
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name in self.unread:
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"it does not read {name.replace('_', '-')}{self.instead}")
        for name, readers in READ_BY.items():
            given = getattr(self, name) != type(self).model_fields[name].default
            if given and self.chosen_geometry not in readers:
                option, known = name.replace("_", "-"), ", ".join(readers)
                if self.geometry is None:  # the model's attention chooses it, later than this
                    raise ValueError(f"{option} is for {known}: write which geometry beside it")
                raise ValueError(
                    f"geometry {self.chosen_geometry} does not read {option}, which is for {known}"
                )
        if any(share < 0 for share in self.shares) or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError(f"shares add up to {sum(self.shares):g}, and all states are 1")
        for name in ("certainty_base", "certainty_exponent"):
            if not self.asks_certainty and getattr(self, name) is not None:
                raise ValueError(
                    f"token-weights {self.token_weights} does not read {name.replace('_', '-')}, "
                    "which is for certainty, certainty-linear"
                )
        if self.certainty_base is not None and not all(0 < b <= 1e3 for b in self.certainty_base):
            raise ValueError("certainty-base takes two numbers above 0, at most 1000")
        if self.token_weights == "certainty-linear" and self.chosen_geometry == "clean":
            raise ValueError(
                "token-weights certainty-linear weighs masked tokens alone by confidence, and "
                "geometry clean masks none: take certainty, or leave it out"
            )
        if self.token_weights == "guided" and not self.reads_guidance:
            raise ValueError(
                "token-weights guided is for passes that take moments, and not for this one"
            )
        if self.isolate and self.pack != "documents":
            raise ValueError(
                f"pack {self.pack} does not read isolate: its windows are of one document each"
            )
        return self

    @property
    def chosen_geometry(self) -> Geometry:
        """Which tokens are masked."""
        return self.geometry or USUAL

    @property
    def asks_certainty(self) -> bool:
        """Whether tokens are weighed by how sure the original model is."""
        return self.token_weights in BASES

    def draws(self) -> dict[str, object]:
        """What says which samples are drawn and how they are masked, by the options' names."""
        fields = [name for name in CalibrationFields.model_fields if name not in UNDRAWN]
        own = {name.replace("_", "-"): getattr(self, name) for name in fields}
        return {**own, "geometry": self.chosen_geometry}

    def check(self, graph: LayerGraph) -> None:
        """Refuse samples that are longer than the model takes, or too short to hold text."""
        if self.length is not None and self.length > graph.model.max_length:
            raise InvalidCalibration(
                f"samples of {self.length} tokens are asked for, "
                f"the model takes {graph.model.max_length}",
                help=f"the longest is --length {graph.model.max_length}, which it is if not given",
            )
        canvas = graph.model.canvas
        if self.length is not None and canvas is not None and self.length <= canvas:
            raise InvalidCalibration(
                f"samples of {self.length} tokens are all canvas, which takes {canvas}: "
                "nothing would be read as text",
                help=f"take a --length above {canvas}; {2 * canvas} are half text",
            )
        self._check_noise(graph.model)
        if self.asks_certainty:
            output_head(graph, WITHOUT)
        if self.chosen_geometry == "tmas":
            output_head(graph, "choose another geometry")
            if graph.model.mask_token_id is not None:
                self.tmas().sampler.make(graph.model)
                self.tmas().sampler.block_of(graph.model)

    def _check_noise(self, model: ModelFacts) -> None:
        """Refuse masks for a model of noise, and noise for every other one."""
        chosen, problem, help = self.chosen_geometry, "", ""
        if not model.renoises:
            if chosen == NOISE:
                problem = "geometry uniform-noise puts random tokens into a canvas, and the model "
                problem += "has none"
                help = "leave --geometry out"
        elif chosen not in (NOISE, "clean"):
            problem = f"geometry {chosen} draws masks, and the model was trained on random tokens"
            help = f"leave --geometry out, or take {NOISE} or clean"
        elif self.segmented:
            given = "isolate" if self.isolate else f"pack {self.pack}"
            problem = f"{given} sets places apart, and the canvas is the end of a sample"
            help = "take --pack documents or within"
        elif self.asks_certainty:
            problem = f"token-weights {self.token_weights} reads predictions at all places, and "
            problem += "the model has none before its canvas"
            help = WITHOUT
        if problem:
            raise UnsupportedModel(problem, where=[str(self)], help=help)

    def without_masks(self) -> Self | None:
        """The same pass with ``geometry=clean``, and without the options that only masks read."""
        fields = type(self).model_fields
        unread = {name: fields[name].default for name in READ_BY}
        if self.token_weights == "certainty-linear":
            names = ("token_weights", "certainty_base", "certainty_exponent")
            unread |= {name: fields[name].default for name in names}
        return self.model_copy(update={"geometry": "clean", **unread})

    @property
    def segmented(self) -> bool:
        """Whether not all positions of a sample see each other."""
        return self.isolate or self.pack == "pad"

    def times(self) -> Tensor:
        """The time of each row, ``f32[samples * timesteps]``: even, or random for ``uniform``."""
        many = self.timesteps
        if self.chosen_geometry == "uniform":
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
        return PROMPT if self.chosen_geometry == "tmas" and not source.dialogues else 0

    def tmas(self) -> Tmas:
        """What is sampled, with ``geometry=tmas``."""
        sampler = Sampler(self.strategy, self.steps, self.block_length, self.seed)
        return Tmas(sampler, self.shares, self.way, self.timesteps or 1)

    def foreseen_states(self, model: ModelFacts) -> SampledStates | None:
        """The states that will be sampled; None where none are."""
        if self.chosen_geometry != "tmas":
            return None
        return self.tmas().foreseen(self.samples, self.tmas().sampler.text(model))
