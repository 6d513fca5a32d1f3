"""What a decoding run is asked for; every option either acts or is refused."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self, get_args

from pydantic import AfterValidator, Field

from qdc.options import Options, option, switch

CacheName = Literal["none", "prefix", "dual"]
CACHES: tuple[str, ...] = get_args(CacheName)
CACHE_BITS = (8, 4)
"""Of codes that keys and values are kept in."""

LONGEST_NAME = 256
"""Characters of a strategy and its own options, which may be a stranger's."""
SMALLEST = 1e-100
"""Of temperatures that are not 0: what is divided by less, overflows."""


def _codes(bits: int | None) -> int | None:
    if bits is not None and bits not in CACHE_BITS:
        raise ValueError(f"give {' or '.join(map(str, CACHE_BITS))}")
    return bits


def _divides(temperature: float) -> float:
    if 0 < temperature < SMALLEST:
        raise ValueError(f"give 0, or at least {SMALLEST}")
    return temperature


Temperature = Annotated[
    float,
    Field(ge=0, le=100),
    AfterValidator(_divides),
    option("T", "0 is greedy", more="The most probable token"),
]
TopP = Annotated[
    float | None,
    Field(gt=0, le=1),
    option("P", "Draw from this much probability", more="The fewest tokens that hold it"),
]
TopK = Annotated[int | None, Field(ge=1), option("N", "Draw from the N most probable")]
PlaceTemperature = Annotated[
    float,
    Field(ge=0),
    AfterValidator(_divides),
    option("T", "Draw positions too", more="Where above 0, by Dream's strategies"),
]
Mixture = Annotated[
    float,
    Field(ge=0, le=1),
    option("R", "Weight against the verifier", more="R: that of the diffusion model"),
]
Window = Annotated[
    int,
    Field(ge=0),
    option(
        "W", "Columns computed anew", more="W: those in front of the last step's; with 0 all are"
    ),
]
Lookahead = Annotated[int, Field(ge=1), option("M", "Open columns seen", more="M: by the model")]
Acceptance = Annotated[
    Literal["parity", "corrected"],
    option(
        "NAME",
        "corrected | parity",
        more="``parity`` accepts as the released code does, ``corrected`` as the paper says",
    ),
]


class DecodeOptions(Options):
    """How answers are written. Fields that are left out take the strategy's own default.

    Which options a strategy reads is known where strategies are: ``make_strategy`` looks it up, and
    refuses those that would be ignored.
    """

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
        str,
        Field(min_length=1, max_length=LONGEST_NAME),
        option(
            "NAME",
            "A family's own, or",
            more="The sampler that the model's family is published with, ``low-confidence`` where "
            "it has none of its own. It says how many places a step too; ``name{option=value}`` "
            "for options of its own",
        ),
    ] = "low-confidence"
    cache: Annotated[
        CacheName,
        option(
            "NAME",
            "none | prefix | dual",
            more="Which keys and values are kept within a block, see ``docs/decoding.md``",
        ),
    ] = "none"
    cache_bits: Annotated[
        int | None,
        AfterValidator(_codes),
        option(
            "N",
            "Of a cache kept as codes: 8 or 4",
            more="As computed if not given; codes take less memory, and are an approximation more",
        ),
    ] = None
    temperature: Temperature = 0.0
    top_p: TopP = None
    top_k: TopK = None
    alg_temperature: PlaceTemperature = 0.0
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
            "Never write the end of sequence",
            more="Ends of turns are written, and end an answer (LLaDA's ``logits_eos_inf``)",
        ),
    ] = False
    late_eos: Annotated[
        bool,
        switch(
            "Decide ends last",
            more="Of sequence and of turn; they leave the confidence of all other places (LLaDA's "
            "``confidence_eos_eot_inf``)",
        ),
    ] = False
    stop_early: bool = Field(
        default=True,
        description="Leave out the blocks behind one that holds an end; no answer changes by that",
    )
    apd_mixture: Mixture = 0.7
    apd_window: Window = 16
    apd_lookahead: Lookahead = 100
    apd_acceptance: Acceptance = "corrected"

    @property
    def names_strategy(self) -> bool:
        """Whether a strategy was asked for, and not left to the model."""
        return "strategy" in self.model_fields_set

    def settled(self, usual: Mapping[str, object]) -> Self:
        """The same, with what a model's own sampler has where nothing else was asked for.

        Another strategy than the model's own keeps its own defaults; the model's own with options
        written to it keeps them, and takes the cache alone. Without them it is the usual one, with
        the options that are usual.

        Args:
            usual: options by name, ``strategy`` among them, or nothing.
        """
        given = self.model_fields_set
        name = str(usual.get("strategy", "")).partition("{")[0]
        if self.strategy == name:
            given = given - {"strategy"}
        elif usual and self.names_strategy and self.strategy != usual["strategy"]:
            own = self.strategy.partition("{")[0].strip() == name
            usual = {n: v for n, v in usual.items() if own and n == "cache"}
        if not usual:
            return self
        return self.model_copy(update={n: v for n, v in usual.items() if n not in given})
