"""Results of an evaluation on held-out text, as data: the tables, ``--json`` and the report."""

from typing import Literal

from pydantic import BaseModel, ConfigDict

from qdc.evaluation.bootstrap import Interval
from qdc.ir.text_use import TextUse


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RatioResult(_Result):
    """Masked ``tokens`` at one mask ``ratio``, and the mean ``loss`` of one, in nats."""

    ratio: float
    tokens: int
    loss: float
    interval: Interval | None = None
    """Of the loss, 95%."""


class Evaluation(_Result):
    """How well one model predicts; losses in nats per token.

    ``unigram`` is the cross-entropy of the windows' tokens under their own frequencies, which a
    model without context could at best reach; ``bound`` bounds the negative log-likelihood.
    """

    documents: int | None
    text: TextUse | None = None
    """What the windows were made of."""
    windows: int
    length: int
    unigram: float
    ratios: tuple[RatioResult, ...]
    bound: float | None
    """None where random tokens stand in for masks: then there is none."""
    bound_interval: Interval | None = None
    resampled: Literal["documents", "windows"] = "windows"
    """What counts as one observation for intervals and standard errors."""
    behind_clean: int | None = None
    """Tokens of the blocks that are read one by one behind clean text; None where all masks of a
    window are seen at once."""
    canvas: int | None = None
    """Tokens at the end of a window of which a share, the ratio, is replaced by random ones; None
    where masks hide them, anywhere in a window."""


class Difference(_Result):
    """Mean ``rise`` of the loss of a masked token at one ``ratio``, with its standard error."""

    ratio: float
    rise: float
    standard_error: float
    interval: Interval | None = None
    """Of the rise, 95%, from paired differences."""


class Agreement(_Result):
    """How far the candidate predicts at one mask ``ratio`` what the original predicts."""

    ratio: float
    top1: float
    """Share of masked tokens for which both have the same most probable token."""
    top1_interval: Interval | None
    divergence: float
    """Mean of KL(original || candidate) over masked tokens, nats."""
    divergence_interval: Interval | None


class DecodeAgreement(_Result):
    """What both models write, greedily, into the same ``gaps`` of ``gap`` tokens."""

    gaps: int
    gap: int
    tokens_equal: float
    """Share of filled tokens that are equal."""
    interval: Interval | None
    gaps_equal: int
    """Gaps that are filled with the very same tokens."""
    candidate_right: float
    """Share of tokens that are those of the text."""
    original_right: float


class Comparison(_Result):
    """Two models on the same masks; a positive rise means that the candidate predicts worse.

    Standard errors and intervals take a document, with all its windows and masks, for one
    observation; a window, if the documents are not known or there is just one.
    """

    candidate: Evaluation
    original: Evaluation
    differences: tuple[Difference, ...]
    bound_rise: float | None
    bound_standard_error: float | None
    bound_interval: Interval | None = None
    agreements: tuple[Agreement, ...] = ()
    decoding: DecodeAgreement | None = None


class NextToken(_Result):
    """How well one causal model predicts the next token; nats per token.

    ``unigram`` is as in ``Evaluation``; ``tokens`` are those that are predicted: all of a window
    but its first.
    """

    documents: int | None
    text: TextUse | None = None
    windows: int
    length: int
    unigram: float
    tokens: int
    next_token_loss: float
    interval: Interval | None = None
    """Of the loss, 95%."""
    resampled: Literal["documents", "windows"] = "windows"


class NextTokenComparison(_Result):
    """Two causal models on the same windows, as ``Comparison`` and ``Agreement``."""

    candidate: NextToken
    original: NextToken
    rise: float
    standard_error: float
    interval: Interval | None
    top1: float
    """Share of tokens for which both have the same most probable next one."""
    top1_interval: Interval | None
    divergence: float
    """Mean of KL(original || candidate) over the predicted tokens, nats."""
    divergence_interval: Interval | None
