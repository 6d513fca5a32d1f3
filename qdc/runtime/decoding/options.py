"""What a decoding run is asked for; every option either acts or is refused."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from qdc.errors import QdcError

StrategyName = Literal[
    "low-confidence",
    "random",
    "origin",
    "maskgit-plus",
    "topk-margin",
    "entropy",
    "threshold",
    "factor",
    "sequential",
    "dynamic",
    "apd",
]
CacheName = Literal["none", "prefix", "dual"]
Acceptance = Literal["parity", "corrected"]

STRATEGIES: tuple[str, ...] = get_args(StrategyName)
CACHES: tuple[str, ...] = get_args(CacheName)

READS: Mapping[str, tuple[str, ...]] = {
    "steps": tuple(name for name in STRATEGIES if name not in ("threshold", "factor", "apd")),
    "block": tuple(name for name in STRATEGIES if name != "apd"),
    "threshold": ("threshold", "dynamic"),
    "factor": ("factor",),
    "alg_temperature": ("maskgit-plus", "topk-margin", "entropy"),
    "late_eos": tuple(n for n in STRATEGIES if n not in ("origin", "sequential", "apd")),
    "apd_mixture": ("apd",),
    "apd_window": ("apd",),
    "apd_lookahead": ("apd",),
    "apd_acceptance": ("apd",),
}
"""Options that only some strategies read, with those strategies."""

SMALLEST = 1e-100
"""Of temperatures that are not 0: what is divided by less, overflows."""


def _divides(temperature: float) -> float:
    if 0 < temperature < SMALLEST:
        raise ValueError(f"give 0, or at least {SMALLEST}")
    return temperature


Temperature = Annotated[float, Field(ge=0), AfterValidator(_divides)]


class DecodeOptions(BaseModel):
    """How answers are written. Fields that are left out take the strategy's own default."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    length: int = Field(default=128, ge=1, le=1 << 20)
    """New tokens of each answer."""
    steps: int | None = Field(default=None, ge=1, le=1 << 20)
    """Denoising steps of the whole answer; one a token if not given."""
    block: int | None = Field(default=None, ge=1, le=1 << 20)
    """Positions that are finished before the next ones are begun; all at once if not given. Models
    with block-causal attention take their own block or a part of it, and their own if not given."""
    strategy: StrategyName = "low-confidence"
    """Which positions are decided, and how many a step."""
    threshold: float | None = Field(default=None, ge=0, le=1)
    """Least confidence that decides a position: 0.9 for ``threshold``, 0.85 for ``dynamic``."""
    factor: float | None = Field(default=None, ge=0)
    """Of ``factor``: 1 if not given."""
    cache: CacheName = "none"
    """Which keys and values are kept within a block, see ``docs/decoding.md``."""
    temperature: Temperature = Field(default=0.0, le=100)
    """0 takes the most probable token."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """Draw from the fewest tokens that hold this probability."""
    top_k: int | None = Field(default=None, ge=1)
    """Draw from this many tokens."""
    alg_temperature: Temperature = 0.0
    """Above 0, Dream's strategies draw the positions too."""
    cfg: float = Field(default=0.0, ge=0, le=100)
    """Weight w of classifier-free guidance; 0 is without."""
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Of all that is drawn; an answer depends on it, its prompt and the options alone."""
    forbid_eos: bool = False
    """Never write an end of sequence (LLaDA's ``logits_eos_inf``)."""
    late_eos: bool = False
    """Decide ends of sequence and of turn last (LLaDA's ``confidence_eos_eot_inf``)."""
    stop_early: bool = True
    """Leave out the blocks behind one that holds an end; no answer changes by that."""
    apd_mixture: float = Field(default=0.7, ge=0, le=1)
    """R: weight of the diffusion model against the verifier."""
    apd_window: int = Field(default=16, ge=0)
    """W: columns in front of the last step's that are computed anew; with 0 all are."""
    apd_lookahead: int = Field(default=100, ge=1)
    """M: open columns that the model sees."""
    apd_acceptance: Acceptance = "corrected"
    """``parity`` accepts as the released code does, ``corrected`` as the paper says."""

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> Self:
        for name in self.model_fields_set & READS.keys():
            default = type(self).model_fields[name].default
            if getattr(self, name) != default and self.strategy not in READS[name]:
                known = ", ".join(READS[name])
                raise ValueError(f"{name} has no effect on {self.strategy}; it is read by {known}")
        if self.strategy == "apd" and (self.cache != "none" or self.cfg or self.forbid_eos):
            raise ValueError("apd has its own window of keys and takes no cache, cfg or forbid_eos")
        return self


def parse_options(**fields: Any) -> DecodeOptions:
    """Build options from values that a user gave. Raises ``QdcError`` naming what is wrong."""
    try:
        return DecodeOptions.model_validate(fields)
    except ValidationError as error:
        raise QdcError(
            "decoding cannot be asked for that",
            where=[_sentence(problem) for problem in error.errors()],
            help="qdc generate --help and docs/decoding.md name the options",
        ) from error


def _sentence(problem: Mapping[str, Any]) -> str:
    place, text = ".".join(map(str, problem["loc"])), str(problem["msg"])
    text = text.removeprefix("Value error, ")
    return f"{place}: {text[:1].lower()}{text[1:]}" if place else text
