"""Cross-entropy of masked tokens, window by window, of several models on the very same masks."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from qdc.errors import QdcError
from qdc.evaluation.in_blocks import Read, at_once
from qdc.models.predictions import Logits, logits_shift, require_finite
from qdc.numerics.random_numbers import uniforms

__all__ = [
    "Logits",
    "Sums",
    "bound_masks",
    "divergences",
    "masked_sums",
    "ratio_mask",
]


SLICE = 256
"""Positions whose distributions are compared at a time, in float64."""


class Sums(NamedTuple):
    """Per window: masked tokens ``i64[w]``, and for each model their cross-entropy ``f64[w]``.

    Where models are compared, for each but the last one also the masked tokens on whose most
    probable token it agrees with the last one, and the sum of KL(last || it), ``f64[w]``.
    """

    tokens: Tensor
    losses: tuple[Tensor, ...]
    agreed: tuple[Tensor, ...] = ()
    divergences: tuple[Tensor, ...] = ()


def ratio_mask(windows: int, length: int, ratio: float, seed: int) -> Tensor:
    """Mask each position with probability ``ratio``, at least one a window: ``bool[w, length]``.

    The mask of a window depends on its number and on the seed alone; that of a smaller ratio lies
    within that of a larger one.
    """
    draw = _draws(windows, length, "ratio", seed)
    masked = draw < ratio
    masked[torch.arange(windows), draw.argmin(1)] = True
    return masked


def bound_masks(windows: int, length: int, samples: int, seed: int) -> Iterator[Tensor]:
    """Yield ``samples`` masks ``bool[w, length]`` of 1 to ``length`` positions a window.

    A window's times are stratified over (0, 1], one in each of ``samples`` equal parts. Time t
    masks exactly ``ceil(t * length)`` positions, a uniform choice of them.
    """
    for stratum in range(samples):
        late = 1 - _draws(windows, 1, "bound time", seed, stratum)
        count = ((stratum + late.double()) / samples * length).ceil().long().clamp(1, length)
        rank = (
            _draws(windows, length, "bound mask", seed, stratum)
            .argsort(dim=1, stable=True)
            .argsort(1)
        )
        yield rank < count


@torch.no_grad()
def masked_sums(
    models: Sequence[Logits],
    windows: Tensor,
    masked: Tensor,
    mask_id: int | Tensor | None,
    batch: int,
    done: Callable[[], None],
    *,
    compared: bool = False,
    shift: int | None = None,
    read: Read = at_once,
) -> Sums:
    """Run every model on clean windows ``i64[w, length]`` with the places of ``masked`` hidden.

    They are hidden by the mask token, or by tokens ``i64[w, length]`` that stand in for the text's.

    Cross-entropy in nats, computed in float32 and summed in float64; with ``compared`` every model
    is also held against the last one. ``done`` is called after each forward. Without a mask token
    the models see the clean windows; ``shift`` stands in for that of the models, and ``read`` says
    what a model is given of masked windows. Raises QdcError
    for logits that are not finite or that do not cover the tokens.
    """
    losses, agreed, divergences = (
        [torch.zeros(len(windows), dtype=torch.float64) for _ in models] for _ in range(3)
    )
    for start in range(0, len(windows), batch):
        clean, hidden = windows[start : start + batch], masked[start : start + batch]
        noisy = clean
        if isinstance(mask_id, Tensor):
            noisy = torch.where(hidden, mask_id[start : start + batch], clean)
        elif mask_id is not None:
            noisy = clean.masked_fill(hidden, mask_id)
        row = hidden.nonzero()[:, 0] + start
        expected: Tensor | None = None
        for place, model in reversed(list(enumerate(models))):
            moved = logits_shift(model) if shift is None else shift
            found = _checked(read(model, noisy.clone(), clean, hidden, moved), clean)
            losses[place].index_add_(
                0, row, functional.cross_entropy(found, clean[hidden], reduction="none").double()
            )
            if compared and expected is not None:
                same, divergence = _agreement(found, expected)
                agreed[place].index_add_(0, row, same.double())
                divergences[place].index_add_(0, row, divergence)
            elif compared:
                expected = found
            done()
    others = len(models) - 1 if compared else 0
    return Sums(masked.sum(1), tuple(losses), tuple(agreed[:others]), tuple(divergences[:others]))


def _agreement(found: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """Equal most probable tokens ``bool[m]``, KL(expected || found) ``f64[m]``, of ``[m, v]``."""
    if found.shape != expected.shape:
        raise QdcError(
            f"found logits for {found.shape[1]} and for {expected.shape[1]} tokens",
            help="compare models of one vocabulary",
        )
    return found.argmax(1) == expected.argmax(1), divergences(expected, found)


def divergences(expected: Tensor, found: Tensor) -> Tensor:
    """KL(expected || found) of each row of logits ``[m, v]``: ``f64[m]``, in nats."""
    parts = [torch.zeros(0, dtype=torch.float64, device=found.device)]
    for start in range(0, len(found), SLICE):
        due = expected[start : start + SLICE].double().log_softmax(1)
        got = found[start : start + SLICE].double().log_softmax(1)
        parts.append((due.exp() * (due - got)).sum(1).clamp(min=0))
    return torch.cat(parts)


def _checked(logits: Tensor, clean: Tensor) -> Tensor:
    """Return the logits ``f32[masked, vocabulary]`` of masked tokens on the CPU, checked."""
    highest = int(clean.max())
    if highest >= logits.shape[1]:
        raise QdcError(
            f"found token {highest}, and the model has logits for {logits.shape[1]} tokens",
            help="use the tokenizer of this model",
        )
    found = logits.float().cpu()
    require_finite(found)
    return found


def _draws(windows: int, length: int, *key: str | int) -> Tensor:
    return torch.stack([uniforms(length, "evaluate", *key, window) for window in range(windows)])
