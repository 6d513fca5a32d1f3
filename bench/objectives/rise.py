"""The rise of the masked cross-entropy over the original's, on the same masks."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from bench.objectives.model import BATCH, Samples, Subject, Weights
from qdc.evaluation.bootstrap import standard_error
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
        error = standard_error(rise, self.tokens)
        mean = float(rise.sum() / self.tokens.double().sum())
        return mean, math.nan if error is None else error

    def _losses(self, logits: Logits) -> Tensor:
        """Cross-entropy of each window, ``f64[windows]``."""
        mask_id = self.subject.facts.mask
        return torch.cat(
            [
                masked_sums((logits,), p.clean, p.masked, mask_id, BATCH, lambda: None).losses[0]
                for p in self.samples
            ]
        )
