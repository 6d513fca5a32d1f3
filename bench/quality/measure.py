"""Judge a quantized model on held-out masked text: its losses, and how far it has drifted."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.common.hooks import Look, watching
from qdc.evaluation.evaluate import BATCH, RATIOS, SEEDS
from qdc.evaluation.masked_loss import masked_sums, ratio_mask
from qdc.ir.graph import LayerGraph
from qdc.models.predictions import predictions

from .result import Drift, Losses

DRIFT_WINDOWS, DRIFT_RATIO = 16, 0.5
DRIFT_BATCH = 8


def losses(model: nn.Module, windows: Tensor, mask_id: int) -> tuple[Losses, ...]:
    """Masked cross-entropy of every window, on the masks of ``qdc eval``: the same for all."""
    found = []
    for ratio in RATIOS:
        masks = [ratio_mask(len(windows), windows.shape[1], ratio, seed) for seed in SEEDS]
        parts = [masked_sums((model,), windows, m, mask_id, BATCH, lambda: None) for m in masks]
        tokens = torch.stack([part.tokens for part in parts]).sum(0)
        loss = torch.stack([part.losses[0] for part in parts]).sum(0)
        found.append(
            Losses(ratio=ratio, tokens=tuple(tokens.tolist()), losses=tuple(loss.tolist()))
        )
    return tuple(found)


@torch.no_grad()
def drift(
    candidate: nn.Module, original: nn.Module, graph: LayerGraph, windows: Tensor, mask_id: int
) -> Drift:
    """Compare layers on the original's inputs, and blocks and predictions on their own.

    ``windows`` is ``i64[w, length]``; the first 16 are used.
    """
    clean = windows[:DRIFT_WINDOWS]
    hidden = ratio_mask(len(clean), clean.shape[1], DRIFT_RATIO, SEEDS[0])
    layers = {node.name: _Share() for node in graph.layers()}
    compared = {
        node.path: _against(candidate.get_submodule(node.path), layers[node.name])
        for node in graph.layers()
    }
    regions = [_Share() for _ in graph.regions]
    blocks = [graph.structure.prefix + region.name for region in graph.regions]
    divergence = 0.0
    for start in range(0, len(clean), DRIFT_BATCH):
        part = slice(start, start + DRIFT_BATCH)
        tokens, masked = clean[part].masked_fill(hidden[part], mask_id), hidden[part]
        with watching(original, compared):
            outputs, logits = _blocks(original, blocks, tokens)
        own, predicted = _blocks(candidate, blocks, tokens)
        for share, here, there in zip(regions, own, outputs, strict=True):
            share.add(here[masked], there[masked])
        shift = graph.model.logits_shift
        expected = predictions(logits, masked, shift).double().log_softmax(-1)
        found = predictions(predicted, masked, shift).double().log_softmax(-1)
        divergence += float((expected.exp() * (expected - found)).sum())
    return Drift(
        layers={name: share.value for name, share in layers.items()},
        regions=tuple(share.value for share in regions),
        divergence=divergence / int(hidden.sum()),
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


def _against(peer: nn.Module, share: _Share) -> Look:
    return lambda read, output: share.add(peer(read), output)


def _blocks(model: nn.Module, paths: Sequence[str], tokens: Tensor) -> tuple[list[Tensor], Tensor]:
    """The output of each block, and the logits."""
    found: list[Tensor] = []
    with watching(model, dict.fromkeys(paths, lambda read, output: found.append(output))):
        logits: Tensor = model(tokens)
    return found, logits
