"""Masked cross-entropy of a model, and of two models on the same masks.

Two numbers describe a masked diffusion model: how well it predicts tokens masked at a fixed ratio,
and the bound on the negative log-likelihood, the mean over time t of the masked cross-entropy
divided by t. The bound is drawn as LLaDA's likelihood is: a time masks an exact
number k of L tokens and its weight is L / k. Its expectation is that of independent masks with
weight 1 / t, whose variance has no limit as t nears 0.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.agreement import decode_agreement
from qdc.evaluation.bootstrap import Interval, interval, standard_error
from qdc.evaluation.held_out import held_out, held_out_windows
from qdc.evaluation.in_blocks import at_once, block_by_block
from qdc.evaluation.masked_loss import Logits, Sums, bound_masks, masked_sums, ratio_mask
from qdc.evaluation.noise import Noise
from qdc.evaluation.results import (
    Agreement,
    Comparison,
    DecodeAgreement,
    Difference,
    Evaluation,
    RatioResult,
)
from qdc.ir.text_use import TextUse
from qdc.units import Progress

__all__ = [
    "Agreement",
    "Comparison",
    "DecodeAgreement",
    "Difference",
    "Evaluation",
    "Logits",
    "RatioResult",
    "compare",
    "evaluate",
    "held_out",
    "held_out_windows",
]

RATIOS = (0.15, 0.5, 0.85)
SEEDS = (0, 1, 2)
BATCH = 16
BOUND_SAMPLES = 8


def evaluate(
    logits: Logits,
    windows: Tensor,
    mask_id: int | Noise,
    ratios: Sequence[float] = RATIOS,
    seeds: Sequence[int] = SEEDS,
    batch: int = BATCH,
    bound_samples: int = BOUND_SAMPLES,
    progress: Progress | None = None,
    documents: int | None = None,
    owners: Tensor | None = None,
    text: TextUse | None = None,
    behind_clean: int | None = None,
) -> Evaluation:
    """Measure one model on clean windows ``i64[w, length]``.

    ``mask_id`` is the mask token, or says how random tokens are drawn in its place; then there is
    no bound, and a ratio is that of a window's canvas.

    Each ratio is measured once a seed, the bound with ``bound_samples`` masks a window from the
    first seed; ``progress`` counts forwards. ``documents`` and ``text`` are only noted in the
    result; ``owners``, ``i64[w]``, are the documents of the windows, which intervals resample. With
    ``behind_clean``, tokens of an attention block, each block is read behind the clean text before
    it (``in_blocks``), else all places of a window are hidden at once.
    """
    _check(windows, ratios, seeds, batch, bound_samples, owners)
    settings = (ratios, seeds, batch, bound_samples, progress, behind_clean)
    measured = _measure((logits,), windows, mask_id, *settings)
    found = _evaluation(0, windows, ratios, measured, documents, text, groups_of(owners))
    return found.model_copy(update=_noted(mask_id, behind_clean))


def compare(
    candidate_logits: Logits,
    original_logits: Logits,
    windows: Tensor,
    mask_id: int | Noise,
    ratios: Sequence[float] = RATIOS,
    seeds: Sequence[int] = SEEDS,
    batch: int = BATCH,
    bound_samples: int = BOUND_SAMPLES,
    progress: Progress | None = None,
    documents: int | None = None,
    owners: Tensor | None = None,
    text: TextUse | None = None,
    infills: int = 0,
    block: int | None = None,
    decoded: Progress | None = None,
    behind_clean: int | None = None,
) -> Comparison:
    """Measure two models on the same windows ``i64[w, length]`` under the same masks.

    Arguments as for ``evaluate``; with ``infills`` as many gaps are filled by both, see
    ``decode_agreement``, ``block`` is that of a block-causal model, and ``decoded`` counts the
    gaps. Needs two windows or more, or there is no standard error.
    """
    _check(windows, ratios, seeds, batch, bound_samples, owners)
    if len(windows) < 2:
        raise QdcError(
            "found 1 window, need at least 2 for a standard error",
            help="give longer held-out text, or a smaller length",
        )
    models = (candidate_logits, original_logits)
    settings = (ratios, seeds, batch, bound_samples, progress, behind_clean)
    measured = _measure(models, windows, mask_id, *settings)
    groups, noted = groups_of(owners), _noted(mask_id, behind_clean)
    differences = [_rise(sums, groups) for sums in measured]
    decoding, bound = None, differences[len(ratios)] if len(differences) > len(ratios) else None
    if infills:
        assert isinstance(mask_id, int), "a canvas has no gaps"
        decoding = decode_agreement(
            *models, windows, mask_id, infills, groups, block, progress=decoded, batch=batch
        )
    return Comparison(
        candidate=_evaluation(0, windows, ratios, measured, documents, text, groups).model_copy(
            update=noted
        ),
        original=_evaluation(1, windows, ratios, measured, documents, text, groups).model_copy(
            update=noted
        ),
        differences=tuple(
            Difference(ratio=ratio, rise=rise, standard_error=error, interval=ends)
            for ratio, (rise, error, ends) in zip(ratios, differences, strict=False)
        ),
        bound_rise=None if bound is None else bound[0],
        bound_standard_error=None if bound is None else bound[1],
        bound_interval=None if bound is None else bound[2],
        agreements=tuple(
            _agreement(ratio, sums, groups) for ratio, sums in zip(ratios, measured, strict=False)
        ),
        decoding=decoding,
    )


def groups_of(owners: Tensor | None) -> Tensor | None:
    """The documents, unless there is just one: then windows are all that can be resampled."""
    return None if owners is None or len(torch.unique(owners)) < 2 else owners


def _noted(mask_id: int | Noise, behind_clean: int | None) -> dict[str, int | None]:
    """What the result says of how places were hidden."""
    canvas = mask_id.canvas if isinstance(mask_id, Noise) else None
    return {"behind_clean": behind_clean, "canvas": canvas}


def _check(
    windows: Tensor,
    ratios: Sequence[float],
    seeds: Sequence[int],
    batch: int,
    bound_samples: int,
    owners: Tensor | None,
) -> None:
    check_windows(windows, owners)
    outside = [f"{ratio:g}" for ratio in ratios if not 0 < ratio <= 1]
    if outside:
        raise QdcError(
            f"found mask ratio {', '.join(outside)}, need ratios above 0 and up to 1",
            help="0.15, 0.5 and 0.85 are the default",
        )
    if not seeds or batch < 1 or bound_samples < 1:
        raise QdcError(
            f"found {len(seeds)} seeds, batch {batch} and {bound_samples} bound samples, "
            "need at least 1 of each",
            help=f"the defaults are {len(SEEDS)} seeds, {BATCH} and {BOUND_SAMPLES}",
        )


def check_windows(windows: Tensor, owners: Tensor | None) -> None:
    """Raise ``QdcError`` unless there are windows ``i64[w, length]``, with the document of each."""
    if windows.ndim != 2 or not windows.numel():
        raise QdcError(
            f"found windows of shape {list(windows.shape)}, need [windows, length]",
            help="give at least one window of at least one token",
        )
    if owners is not None and owners.shape != windows.shape[:1]:
        raise QdcError(
            f"found the documents of {list(owners.shape)} windows, need those of {len(windows)}",
            help="give the number of a document for each window",
        )


def _measure(
    models: Sequence[Logits],
    windows: Tensor,
    mask_id: int | Noise,
    ratios: Sequence[float],
    seeds: Sequence[int],
    batch: int,
    bound_samples: int,
    progress: Progress | None,
    behind_clean: int | None,
) -> list[Sums]:
    """Sum each ratio over its seeds; with masks there is one more entry, the bound.

    There ``tokens`` is 1 and a window's loss a mean, so that loss over tokens is the bound in nats.
    """
    bound_samples = 0 if isinstance(mask_id, Noise) else bound_samples
    forwards = len(models) * -(-len(windows) // batch)
    total, passed = forwards * (len(ratios) * len(seeds) + bound_samples), 0

    def done() -> None:
        nonlocal passed
        passed += 1
        if progress is not None:
            progress(passed, total)

    count, length = windows.shape
    read = at_once if behind_clean is None else block_by_block(behind_clean)
    measured = []

    def hidden(ratio: float, seed: int) -> tuple[Tensor, int | Tensor]:
        if isinstance(mask_id, int):
            return ratio_mask(count, length, ratio, seed), mask_id
        places = mask_id.places(count, length, ratio, seed)
        return places, mask_id.tokens(count, length, seed)

    for ratio in ratios:
        parts = [
            masked_sums(
                models, windows, *hidden(ratio, seed), batch, done, compared=len(models) > 1,
                read=read,
            )
            for seed in seeds
        ]  # fmt: skip
        tokens = torch.stack([part.tokens for part in parts]).sum(0)
        measured.append(
            Sums(
                tokens,
                _added([part.losses for part in parts]),
                _added([part.agreed for part in parts]),
                _added([part.divergences for part in parts]),
            )
        )
    if isinstance(mask_id, Noise):
        return measured
    bound = [torch.zeros(len(windows), dtype=torch.float64) for _ in models]
    for mask in bound_masks(count, length, bound_samples, seeds[0]):
        sums = masked_sums(models, windows, mask, mask_id, batch, done, read=read)
        for mean, loss in zip(bound, sums.losses, strict=True):
            mean += loss / sums.tokens / bound_samples
    return [*measured, Sums(torch.ones(len(windows), dtype=torch.int64), tuple(bound))]


def _added(parts: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Add up what each model has, part by part."""
    return tuple(torch.stack(each).sum(0) for each in zip(*parts, strict=True))


def _evaluation(
    model: int,
    windows: Tensor,
    ratios: Sequence[float],
    measured: Sequence[Sums],
    documents: int | None,
    text: TextUse | None,
    groups: Tensor | None,
) -> Evaluation:
    losses = [float(sums.losses[model].sum() / sums.tokens.sum()) for sums in measured]
    ends = [interval(sums.losses[model], sums.tokens, groups) for sums in measured]
    frequency = windows.flatten().bincount().double() / windows.numel()
    bounded = len(measured) > len(ratios)
    return Evaluation(
        documents=documents,
        text=text,
        windows=len(windows),
        length=windows.shape[1],
        unigram=float(torch.special.entr(frequency).sum()),
        ratios=tuple(
            RatioResult(ratio=ratio, tokens=int(sums.tokens.sum()), loss=loss, interval=end)
            for ratio, sums, loss, end in zip(ratios, measured, losses, ends, strict=False)
        ),
        bound=losses[-1] if bounded else None,
        bound_interval=ends[-1] if bounded else None,
        resampled="windows" if groups is None else "documents",
    )


def _rise(sums: Sums, groups: Tensor | None) -> tuple[float, float, Interval | None]:
    """Return the mean rise of model 0 over model 1 per token, its standard error and interval."""
    rise = sums.losses[0] - sums.losses[1]
    error = standard_error(rise, sums.tokens, groups)
    assert error is not None, "compare has refused a single window"
    mean = float(rise.sum() / sums.tokens.sum())
    return mean, error, interval(rise, sums.tokens, groups)


def _agreement(ratio: float, sums: Sums, groups: Tensor | None) -> Agreement:
    [agreed], [divergence] = sums.agreed, sums.divergences
    return Agreement(
        ratio=ratio,
        top1=float(agreed.sum() / sums.tokens.sum()),
        top1_interval=interval(agreed, sums.tokens, groups),
        divergence=float(divergence.sum() / sums.tokens.sum()),
        divergence_interval=interval(divergence, sums.tokens, groups),
    )
