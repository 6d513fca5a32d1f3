"""Decide as many places a step as their entropies together allow.

The error of deciding several places at once, from predictions that do not know of each other, is at
most the sum of their entropies but for the largest. So the surest places are taken in order until
that sum would exceed a bound, and the surest one always. Sure text goes fast and doubtful text one
token a step, without a threshold on each place. Source: EB-Sampler (arXiv 2505.24857), ordered by
entropy.
"""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.numerics.noise import Places
from qdc.runtime.decoding.llada import LladaSampler
from qdc.runtime.decoding.sampling import negative_entropy


class EntropyBound(LladaSampler):
    """As many of the surest places as their entropies together allow.

    Tokens are drawn as LLaDA draws them; entropies are those of the raw logits.
    """

    name: ClassVar[str] = "entropy-bound"
    source: ClassVar[str] = "EB-Sampler (arXiv 2505.24857)"
    reads: ClassVar[tuple[str, ...]] = ("block", "late_eos")

    bound: float = Field(default=0.1, ge=0, description="entropy in nats, the largest left aside")

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """None: entropies alone say how many places a step decides."""
        return None

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """The entropy, negative: ``f64[places]``."""
        return negative_entropy(logits.softmax(-1))

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """The longest beginning, from the least entropy on, whose sum is within the bound."""
        entropy = torch.where(open_places, -confidence, torch.inf)
        ordered = entropy.sort(dim=1, stable=True)
        # The last one taken is the largest: what stands in front of it is what counts.
        before = ordered.values.cumsum(1).roll(1, dims=1)
        before[:, 0] = 0.0
        taken = (before <= self.bound) & ordered.values.isfinite()
        return torch.zeros_like(open_places).scatter(1, ordered.indices, taken)
