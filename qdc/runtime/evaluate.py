"""Masked cross-entropy of a model, and of two models on the same masks.

Two numbers describe a masked diffusion model: how well it predicts tokens masked at a fixed ratio,
and the bound on the negative log-likelihood, the mean over time t of the masked cross-entropy
divided by t. The bound is drawn as LLaDA's likelihood is: a time masks an exact
number k of L tokens and its weight is L / k. Its expectation is that of independent masks with
weight 1 / t, whose variance has no limit as t nears 0.
"""

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from qdc.errors import QdcError
from qdc.runtime.held_out import held_out_windows
from qdc.runtime.masked_loss import (
    Logits,
    Progress,
    Sums,
    bound_masks,
    masked_sums,
    ratio_mask,
)

__all__ = [
    "Comparison",
    "Difference",
    "Evaluation",
    "Logits",
    "RatioResult",
    "compare",
    "evaluate",
    "held_out_windows",
]

RATIOS = (0.15, 0.5, 0.85)
SEEDS = (0, 1, 2)
BATCH = 16
BOUND_SAMPLES = 8


class _Result(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RatioResult(_Result):
    """Masked ``tokens`` at one mask ``ratio``, and the mean ``loss`` of one, in nats."""

    ratio: float
    tokens: int
    loss: float


class Evaluation(_Result):
    """How well one model predicts; losses in nats per token.

    ``unigram`` is the cross-entropy of the windows' tokens under their own frequencies, which a
    model without context could at best reach; ``bound`` bounds the negative log-likelihood.
    """

    documents: int | None
    windows: int
    length: int
    unigram: float
    ratios: tuple[RatioResult, ...]
    bound: float


class Difference(_Result):
    """Mean ``rise`` of the loss of a masked token at one ``ratio``, with its standard error."""

    ratio: float
    rise: float
    standard_error: float


class Comparison(_Result):
    """Two models on the same masks; a positive rise means that the candidate predicts worse.

    Standard errors take a window, with all its masks, for one independent observation.
    """

    candidate: Evaluation
    original: Evaluation
    differences: tuple[Difference, ...]
    bound_rise: float
    bound_standard_error: float


def evaluate(
    logits: Logits,
    windows: Tensor,
    mask_id: int,
    ratios: Sequence[float] = RATIOS,
    seeds: Sequence[int] = SEEDS,
    batch: int = BATCH,
    bound_samples: int = BOUND_SAMPLES,
    progress: Progress | None = None,
    documents: int | None = None,
) -> Evaluation:
    """Measure one model on clean windows ``i64[w, length]``.

    Each ratio is measured once a seed, the bound with ``bound_samples`` masks a window from the
    first seed; ``progress`` counts forwards. ``documents`` is only noted in the result.
    """
    _check(windows, ratios, seeds, batch, bound_samples)
    measured = _measure((logits,), windows, mask_id, ratios, seeds, batch, bound_samples, progress)
    return _evaluation(0, windows, ratios, measured, documents)


def compare(
    candidate_logits: Logits,
    original_logits: Logits,
    windows: Tensor,
    mask_id: int,
    ratios: Sequence[float] = RATIOS,
    seeds: Sequence[int] = SEEDS,
    batch: int = BATCH,
    bound_samples: int = BOUND_SAMPLES,
    progress: Progress | None = None,
    documents: int | None = None,
) -> Comparison:
    """Measure two models on the same windows ``i64[w, length]`` under the same masks.

    Arguments as for ``evaluate``. Needs two windows or more, or there is no standard error.
    """
    _check(windows, ratios, seeds, batch, bound_samples)
    if len(windows) < 2:
        raise QdcError(
            "found 1 window, need at least 2 for a standard error",
            help="give longer held-out text, or a smaller length",
        )
    models = (candidate_logits, original_logits)
    measured = _measure(models, windows, mask_id, ratios, seeds, batch, bound_samples, progress)
    rises = [_rise(sums) for sums in measured]
    return Comparison(
        candidate=_evaluation(0, windows, ratios, measured, documents),
        original=_evaluation(1, windows, ratios, measured, documents),
        differences=tuple(
            Difference(ratio=ratio, rise=rise, standard_error=error)
            for ratio, (rise, error) in zip(ratios, rises[:-1], strict=True)
        ),
        bound_rise=rises[-1][0],
        bound_standard_error=rises[-1][1],
    )


def _check(
    windows: Tensor, ratios: Sequence[float], seeds: Sequence[int], batch: int, bound_samples: int
) -> None:
    if windows.ndim != 2 or not windows.numel():
        raise QdcError(
            f"found windows of shape {list(windows.shape)}, need [windows, length]",
            help="give at least one window of at least one token",
        )
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


def _measure(
    models: Sequence[Logits],
    windows: Tensor,
    mask_id: int,
    ratios: Sequence[float],
    seeds: Sequence[int],
    batch: int,
    bound_samples: int,
    progress: Progress | None,
) -> list[Sums]:
    """Sum each ratio over its seeds; the last entry is the bound.

    There ``tokens`` is 1 and a window's loss a mean, so that loss over tokens is the bound in nats.
    """
    forwards = len(models) * -(-len(windows) // batch)
    total, passed = forwards * (len(ratios) * len(seeds) + bound_samples), 0

    def done() -> None:
        nonlocal passed
        passed += 1
        if progress is not None:
            progress(passed, total)

    count, length = windows.shape
    measured = []
    for ratio in ratios:
        masks = (ratio_mask(count, length, ratio, seed) for seed in seeds)
        parts = [masked_sums(models, windows, mask, mask_id, batch, done) for mask in masks]
        losses = zip(*(part.losses for part in parts), strict=True)
        tokens = torch.stack([part.tokens for part in parts]).sum(0)
        measured.append(Sums(tokens, tuple(torch.stack(loss).sum(0) for loss in losses)))
    bound = [torch.zeros(count, dtype=torch.float64) for _ in models]
    for mask in bound_masks(count, length, bound_samples, seeds[0]):
        sums = masked_sums(models, windows, mask, mask_id, batch, done)
        for mean, loss in zip(bound, sums.losses, strict=True):
            mean += loss / sums.tokens / bound_samples
    return [*measured, Sums(torch.ones(count, dtype=torch.int64), tuple(bound))]


def _evaluation(
    model: int,
    windows: Tensor,
    ratios: Sequence[float],
    measured: Sequence[Sums],
    documents: int | None,
) -> Evaluation:
    losses = [float(sums.losses[model].sum() / sums.tokens.sum()) for sums in measured]
    frequency = windows.flatten().bincount().double() / windows.numel()
    return Evaluation(
        documents=documents,
        windows=len(windows),
        length=windows.shape[1],
        unigram=float(torch.special.entr(frequency).sum()),
        ratios=tuple(
            RatioResult(ratio=ratio, tokens=int(sums.tokens.sum()), loss=loss)
            for ratio, sums, loss in zip(ratios, measured[:-1], losses[:-1], strict=True)
        ),
        bound=losses[-1],
    )


def _rise(sums: Sums) -> tuple[float, float]:
    """Return the mean rise of model 0 over model 1 per token, and its standard error.

    The mean is a ratio of two sums over windows; its variance is linearised around them.
    """
    rise = sums.losses[0] - sums.losses[1]
    tokens = sums.tokens.double()
    mean = rise.sum() / tokens.sum()
    residual = rise - mean * tokens
    count = len(rise)
    variance = residual.square().sum() * count / (count - 1) / tokens.sum().square()
    return float(mean), float(variance.sqrt())
