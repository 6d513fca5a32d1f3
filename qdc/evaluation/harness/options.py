"""How likelihoods are estimated."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from qdc.options import Options, option

Scorer = Literal["llada", "dream", "dream-published"]
Masks = Annotated[
    int,
    Field(ge=1, le=1 << 16),
    option(
        "N",
        "Masks of one likelihood",
        more="The published evaluations take 128, and 1 for answers of one token",
    ),
]
Guidance = Annotated[
    float,
    Field(ge=0, le=100),
    option(
        "W",
        "Guidance of likelihoods",
        more="Weight w of classifier-free guidance: logits are ``u + (w + 1) (c - u)``, where u "
        "sees no prompt",
    ),
]
Seed = Annotated[int, Field(ge=0), option("N", "Seed of masks of tasks")]
Batch = Annotated[int, option("N", "Sequences of a forward", more="Changes no estimate")]


class LikelihoodOptions(Options):
    """How likelihoods are estimated.

    ``llada`` masks exact counts (C.1 of LLaDA's evaluation), ``dream`` each token by itself.
    ``dream-published`` does what the published code does: an end of sequence stands behind each
    answer, visible, and the first token of a sequence is never masked.
    """

    refusal: ClassVar[str] = "likelihoods cannot be estimated like that"
    manual: ClassVar[str] = (
        "scorers are auto, llada, dream and dream-published; mc-num and batch 1 or more"
    )

    scorer: Scorer = "llada"
    mc_num: Masks = 128
    cfg: Guidance = 0.0
    seed: Seed = 1234
    batch: Annotated[Batch, Field(ge=1)] = 16
