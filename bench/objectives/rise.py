"""The rise of the masked cross-entropy over the original's, on the same masks."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.objectives.model import BATCH, Samples, Subject, Weights
from qdc.evaluation.masked_loss import masked_sums

Logits = Callable[[Tensor], Tensor]


class Gap:
    """Measures rises on fixed samples; the original runs once."""

    def __init__(self, subject: Subject, samples: Sequence[Samples]) -> None:
        self.subject, self.samples = subject, samples
        self.base = self._losses(subject.module)
        self.tokens = torch.cat([part.masked.sum(1) for part in samples])

    def of(self, weights: Weights) -> tuple[float, float]:
        """Rise under some weights, nats a masked token, and its standard error."""
        with self.subject.using(weights):
            return self.of_module(self.subject.module)

    def of_module(self, logits: Logits) -> tuple[float, float]:
        """Rise of whatever computes logits; windows count as independent."""
        rise = self._losses(logits) - self.base
        tokens = self.tokens.double()
        mean = rise.sum() / tokens.sum()
        count = len(rise)
        variance = (rise - mean * tokens).square().sum() * count / (count - 1) / tokens.sum() ** 2
        return float(mean), float(variance.sqrt())

    @property
    def loss(self) -> float:
        """Cross-entropy of the original, nats a masked token."""
        return float(self.base.sum() / self.tokens.sum())

    def _losses(self, logits: Logits) -> Tensor:
        """Cross-entropy of each window, ``f64[windows]``."""
        mask_id = self.subject.facts.mask_token_id
        return torch.cat(
            [
                masked_sums((logits,), p.clean, p.masked, mask_id, BATCH, lambda: None).losses[0]
                for p in self.samples
            ]
        )
