"""Judge a quantized model on held-out text: its losses, and how far it has drifted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qdc.comparing.hooks import Look, watching
from qdc.comparing.result import Drift, Losses
from qdc.evaluation.batches import fitting_batch
from qdc.evaluation.evaluate import BATCH, RATIOS, SEEDS
from qdc.evaluation.in_blocks import Read, at_once
from qdc.evaluation.masked_loss import Logits, Sums, divergences, masked_sums, ratio_mask
from qdc.frontend.select import holder
from qdc.ir.graph import LayerGraph, Node
from qdc.models.predictions import predictions
from qdc.numerics.products import wide_products
from qdc.runtime.activations import knowing_masked

DRIFT_WINDOWS, DRIFT_RATIO = 16, 0.5
DRIFT_BATCH = 8
NEXT_TOKEN_SHIFT = 1


@dataclass(frozen=True)
class OnDevice:
    """A model that takes tokens from wherever they are."""

    module: nn.Module
    device: str
    logits_shift: int

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits ``i64[b, length] -> [b, length, vocabulary]``."""
        with wide_products(self.device):
            found: Tensor = self.module(tokens.to(self.device))
        return found


def middle(ratios: Sequence[float]) -> float:
    """The ratio at which agreement is measured and variants are compared."""
    return sorted(ratios)[len(ratios) // 2]


def losses(
    model: Logits,
    windows: Tensor,
    mask_id: int | None,
    ratios: Sequence[float] = RATIOS,
    masks: int = len(SEEDS),
    original: Logits | None = None,
    done: Callable[[], None] = lambda: None,
    batch: int = BATCH,
    read: Read = at_once,
) -> tuple[Losses, ...]:
    """Cross-entropy of every window ``i64[w, length]``, on the masks of ``qdc eval``.

    The masks are the same for all models. Without a mask token it is the next-token loss.

    Args:
        model: what is measured.
        windows: clean text.
        mask_id: the mask token.
        ratios: shares of the tokens that are masked.
        masks: drawings of each ratio.
        original: agreement with it is measured at the middle ratio.
        done: called after each forward.
        batch: windows of a forward.
        read: what models are given of masked windows.
    """
    if mask_id is None:
        predicted = torch.ones_like(windows, dtype=torch.bool)
        predicted[:, 0] = False
        return (_summed(model, original, windows, [predicted], None, None, done, batch),)
    found = []
    for ratio in ratios:
        drawn = [ratio_mask(len(windows), windows.shape[1], ratio, seed) for seed in range(masks)]
        against = original if ratio == middle(ratios) else None
        found.append(_summed(model, against, windows, drawn, mask_id, ratio, done, batch, read))
    return tuple(found)


def forwards(
    windows: int, ratios: int, masks: int, *, compared: bool, masked: bool, batch: int = BATCH
) -> int:
    """How many times ``losses`` calls ``done``."""
    batches = -(-windows // batch)
    if not masked:
        return batches * (2 if compared else 1)
    return batches * masks * (ratios + compared)


def _summed(
    model: Logits,
    original: Logits | None,
    windows: Tensor,
    masks: Sequence[Tensor],
    mask_id: int | None,
    ratio: float | None,
    done: Callable[[], None],
    batch: int,
    read: Read = at_once,
) -> Losses:
    """Sums over some masks at one ratio."""
    models = (model,) if original is None else (model, original)
    shift = NEXT_TOKEN_SHIFT if mask_id is None else None
    parts: list[Sums] = [
        masked_sums(
            models,
            windows,
            mask,
            mask_id,
            batch,
            done,
            compared=len(models) > 1,
            shift=shift,
            read=read,
        )
        for mask in masks
    ]
    added = {
        "losses": [part.losses[0] for part in parts],
        "agreed": [part.agreed[0] for part in parts if part.agreed],
        "divergences": [part.divergences[0] for part in parts if part.divergences],
    }
    sums = {
        name: tuple(torch.stack(values).sum(0).tolist()) for name, values in added.items() if values
    }
    tokens = tuple(torch.stack([part.tokens for part in parts]).sum(0).tolist())
    return Losses(ratio=ratio, tokens=tokens, **sums)


@torch.no_grad()
def drift(
    candidate: nn.Module,
    original: nn.Module,
    graph: LayerGraph,
    windows: Tensor,
    mask_id: int | None,
    device: str = "cpu",
) -> Drift:
    """Compare layers on the original's inputs, and blocks and predictions on their own.

    ``windows`` is ``i64[w, length]``; the first 16 are used. Without a mask token they stay clean,
    and all positions but the first count.
    """
    clean = windows[:DRIFT_WINDOWS]
    hidden = ratio_mask(len(clean), clean.shape[1], DRIFT_RATIO, SEEDS[0])
    shift = graph.model.logits_shift
    if mask_id is None:
        hidden, shift = torch.ones_like(clean, dtype=torch.bool), NEXT_TOKEN_SHIFT
        hidden[:, 0] = False
    layers = {node.name: _Share() for node in graph.layers()}
    here, there = holder(candidate), holder(original)
    compared = {
        node.path: _against(here.get_submodule(node.path), layers[node.name])
        for node in graph.layers()
        if _is_module(here, node) and _is_module(there, node)
    }
    regions = [_Share() for _ in graph.regions]
    blocks = [graph.structure.prefix + region.name for region in graph.regions]
    divergence = 0.0
    batch = fitting_batch(DRIFT_BATCH, clean.shape[1], graph.model.vocabulary)
    for start in range(0, len(clean), batch):
        part = slice(start, start + batch)
        tokens, masked = clean[part].to(device), hidden[part].to(device)
        if mask_id is not None:
            tokens = tokens.masked_fill(masked, mask_id)
        known = masked if mask_id is not None else torch.zeros_like(masked)
        with watching(there, compared), knowing_masked(known):
            outputs, logits = _blocks(original, blocks, tokens)
        own, predicted = _blocks(candidate, blocks, tokens)
        for share, found, due in zip(regions, own, outputs, strict=True):
            share.add(found[masked], due[masked])
        due, found = (predictions(x, masked, shift) for x in (logits, predicted))
        divergence += float(divergences(due, found).sum())
    return Drift(
        layers={name: share.value for name, share in layers.items() if share.total},
        regions=tuple(share.value for share in regions),
        divergence=divergence / int(hidden.sum()),
        unseen=tuple(name for name, share in layers.items() if not share.total),
    )


class _Share:
    """Squared difference from what was due, as a share of its squares."""

    def __init__(self) -> None:
        self.lost = self.total = 0.0

    def add(self, found: Tensor, due: Tensor) -> None:
        self.lost += float((found.double() - due.double()).square().sum())
        self.total += float(due.double().square().sum())

    @property
    def value(self) -> float:
        return self.lost / self.total


def _is_module(model: nn.Module, node: Node) -> bool:
    """Whether the layer can be watched: experts of some families are slices of one tensor."""
    try:
        model.get_submodule(node.path)
    except AttributeError:
        return False
    return True


def _against(peer: nn.Module, share: _Share) -> Look:
    return lambda read, output: share.add(peer(read), output)


def _blocks(model: nn.Module, paths: Sequence[str], tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """The output of each block, and the logits."""
    found: list[Tensor] = []

    def keep(read: Tensor, output: Any) -> None:
        # Some classes of transformers give a tuple, whose first is the residual stream.
        found.append(output[0] if isinstance(output, tuple) else output)

    with watching(holder(model), dict.fromkeys(paths, keep)):
        logits: Tensor = model(tokens)
    return found, logits
