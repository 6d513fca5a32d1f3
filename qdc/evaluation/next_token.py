"""Next-token loss: the cross-entropy of token t + 1 given the tokens up to t, of causal models.

It is what a model without mask token was trained on, and what its class in transformers gives for
``labels=input_ids``: the first token of a window is predicted by nothing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.errors import QdcError, UnsupportedModel
from qdc.evaluation.bootstrap import interval, standard_error
from qdc.evaluation.evaluate import BATCH, check_windows, groups_of
from qdc.evaluation.masked_loss import Logits, Sums, masked_sums
from qdc.evaluation.results import NextToken, NextTokenComparison
from qdc.ir.facts import ModelFacts
from qdc.ir.text_use import TextUse
from qdc.units import Progress


def require_causal(facts: ModelFacts) -> None:
    """Raise ``UnsupportedModel`` for a model that sees the token that it would have to predict."""
    if facts.renoises:
        raise UnsupportedModel(
            "the model takes random tokens out of a canvas: it has neither a masked loss nor a "
            "next-token loss",
            help="qdc eval --text measures its loss at tokens that were drawn anew",
        )
    if not facts.causal:
        raise UnsupportedModel(
            "the model has no mask token and reads to both sides: it has neither a masked loss nor "
            "a next-token loss",
            help="if it fills masked places, write the id of its mask token to config.json as "
            "mask_token_id",
        )


def evaluate_next(
    logits: Logits,
    windows: Tensor,
    batch: int = BATCH,
    progress: Progress | None = None,
    documents: int | None = None,
    owners: Tensor | None = None,
    text: TextUse | None = None,
) -> NextToken:
    """Measure one causal model on windows ``i64[w, length]`` of two or more tokens.

    Args:
        logits: ``i64[b, length] -> [b, length, vocabulary]``; position i predicts token i + 1.
        windows: clean text.
        batch: windows computed at once.
        progress: counts forwards.
        documents: only noted in the result.
        owners: ``i64[w]``, the documents of the windows, which intervals resample.
        text: what the windows are made of; only noted in the result.

    Raises:
        QdcError: there are no windows, or the logits are not finite or do not cover the tokens.
    """
    sums = _measure((logits,), windows, batch, progress, owners)
    return _result(sums, 0, windows, documents, text, groups_of(owners))


def compare_next(
    candidate_logits: Logits,
    original_logits: Logits,
    windows: Tensor,
    batch: int = BATCH,
    progress: Progress | None = None,
    documents: int | None = None,
    owners: Tensor | None = None,
    text: TextUse | None = None,
) -> NextTokenComparison:
    """Measure two causal models on the same windows, two or more; arguments as above."""
    if len(windows) < 2:
        raise QdcError(
            "found 1 window, need at least 2 for a standard error",
            help="give longer held-out text, or a smaller length",
        )
    sums = _measure((candidate_logits, original_logits), windows, batch, progress, owners)
    groups, tokens = groups_of(owners), sums.tokens
    rise = sums.losses[0] - sums.losses[1]
    error = standard_error(rise, tokens, groups)
    if error is None:
        raise QdcError("found one document, need at least 2", help="give more held-out text")
    return NextTokenComparison(
        candidate=_result(sums, 0, windows, documents, text, groups),
        original=_result(sums, 1, windows, documents, text, groups),
        rise=float(rise.sum() / tokens.sum()),
        standard_error=error,
        interval=interval(rise, tokens, groups),
        top1=float(sums.agreed[0].sum() / tokens.sum()),
        top1_interval=interval(sums.agreed[0], tokens, groups),
        divergence=float(sums.divergences[0].sum() / tokens.sum()),
        divergence_interval=interval(sums.divergences[0], tokens, groups),
    )


def _measure(
    models: Sequence[Logits],
    windows: Tensor,
    batch: int,
    progress: Progress | None,
    owners: Tensor | None,
) -> Sums:
    check_windows(windows, owners)
    if windows.shape[1] < 2 or batch < 1:
        raise QdcError(
            f"found windows of {windows.shape[1]} tokens in batches of {batch}, "
            "need two tokens or more: the first is predicted by nothing",
            help="choose a longer --length",
        )
    total, passed = len(models) * -(-len(windows) // batch), 0

    def done() -> None:
        nonlocal passed
        passed += 1
        if progress is not None:
            progress(passed, total)

    predicted = torch.ones_like(windows, dtype=torch.bool)
    predicted[:, 0] = False
    return masked_sums(
        models, windows, predicted, None, batch, done, compared=len(models) > 1, shift=1
    )


def _result(
    sums: Sums,
    model: int,
    windows: Tensor,
    documents: int | None,
    text: TextUse | None,
    groups: Tensor | None,
) -> NextToken:
    frequency = windows.flatten().bincount().double() / windows.numel()
    losses = sums.losses[model]
    return NextToken(
        documents=documents,
        text=text,
        windows=len(windows),
        length=windows.shape[1],
        unigram=float(torch.special.entr(frequency).sum()),
        tokens=int(sums.tokens.sum()),
        next_token_loss=float(losses.sum() / sums.tokens.sum()),
        interval=interval(losses, sums.tokens, groups),
        resampled="windows" if groups is None else "documents",
    )
