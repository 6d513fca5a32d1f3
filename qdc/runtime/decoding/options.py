"""What a decoding run is asked for; every option either acts or is refused."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field, model_validator

from qdc.options import Options, option, switch

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


class DecodeOptions(Options):
    """How answers are written. Fields that are left out take the strategy's own default."""

    refusal: ClassVar[str] = "decoding cannot be asked for that"
    manual: ClassVar[str] = "qdc generate --help and docs/decoding.md name the options"

    length: Annotated[int, Field(ge=1, le=1 << 20), option("N", "New tokens of the answer")] = 128
    steps: Annotated[
        int | None,
        Field(ge=1, le=1 << 20),
        option("N", "Denoising steps [default: one a token]", more="Of the whole answer"),
    ] = None
    block: Annotated[
        int | None,
        Field(ge=1, le=1 << 20),
        option(
            "N",
            "Positions finished together [default: all]",
            more="Before the next ones are begun. Models with block-causal attention take their "
            "own block or a part of it, and their own if not given",
        ),
    ] = None
    strategy: Annotated[
        StrategyName, option("NAME", "What is decided when", more="And how many places a step")
    ] = "low-confidence"
    cache: Annotated[
        CacheName,
        option(
            "NAME",
            "none | prefix | dual",
            more="Which keys and values are kept within a block, see ``docs/decoding.md``",
        ),
    ] = "none"
    temperature: Annotated[
        Temperature, Field(le=100), option("T", "0 is greedy", more="The most probable token")
    ] = 0.0
    top_p: Annotated[
        float | None,
        Field(gt=0, le=1),
        option("P", "Draw from this much probability", more="The fewest tokens that hold it"),
    ] = None
    top_k: Annotated[int | None, Field(ge=1), option("N", "Draw from the N most probable")] = None
    alg_temperature: Annotated[
        Temperature,
        option("T", "Draw positions too", more="Where above 0, by Dream's strategies"),
    ] = 0.0
    cfg: Annotated[
        float,
        Field(ge=0, le=100),
        option("W", "Classifier-free guidance", more="Its weight w; 0 is without"),
    ] = 0.0
    threshold: Annotated[
        float | None,
        Field(ge=0, le=1),
        option(
            "P",
            "Of threshold [0.9], dynamic [0.85]",
            more="Least confidence that decides a position",
        ),
    ] = None
    factor: Annotated[float | None, Field(ge=0), option("F", "Of factor [default: 1]")] = None
    seed: Annotated[
        int,
        Field(ge=0, lt=1 << 63),
        option(
            "N",
            "Of all noise",
            more="An answer depends on it, its prompt and the options alone",
        ),
    ] = 0
    forbid_eos: Annotated[
        bool,
        switch(
            "Never end early",
            more="Write no end of sequence (LLaDA's ``logits_eos_inf``)",
        ),
    ] = False
    late_eos: Annotated[
        bool,
        switch(
            "Decide ends last",
            more="Of sequence and of turn (LLaDA's ``confidence_eos_eot_inf``)",
        ),
    ] = False
    stop_early: bool = Field(
        default=True,
        description="Leave out the blocks behind one that holds an end; no answer changes by that",
    )
    apd_mixture: Annotated[
        float,
        Field(ge=0, le=1),
        option("R", "Weight against the verifier", more="R: that of the diffusion model"),
    ] = 0.7
    apd_window: Annotated[
        int,
        Field(ge=0),
        option(
            "W",
            "Columns computed anew",
            more="W: those in front of the last step's; with 0 all are",
        ),
    ] = 16
    apd_lookahead: Annotated[
        int, Field(ge=1), option("M", "Open columns seen", more="M: by the model")
    ] = 100
    apd_acceptance: Annotated[
        Acceptance,
        option(
            "NAME",
            "corrected | parity",
            more="``parity`` accepts as the released code does, ``corrected`` as the paper says",
        ),
    ] = "corrected"

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
