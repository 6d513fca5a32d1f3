"""LLaDA's sampler, and the strategies of LLaDA, Fast-dLLM and SDAR, which draw by it."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from qdc.numerics.noise import Places
from qdc.pipeline.strategybase import Proposal, Stepwise
from qdc.runtime.decoding.choice import (
    above,
    above_or_quota,
    leftmost,
    most_confident,
    within_factor,
)
from qdc.runtime.decoding.options import Temperature, TopK, TopP
from qdc.runtime.decoding.sampling import cut_tail, gumbel_tokens, token_probability
from qdc.runtime.decoding.schedule import even_quotas


class LladaSampler(Stepwise):
    """LLaDA's sampler, and as many places a step as an even schedule says.

    Source: LLaDA's ``generate.py``. Defaults there: 128 steps for 128 tokens, temperature 0.
    """

    temperature: Temperature = 0.0
    top_p: TopP = None
    top_k: TopK = None

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Equally many a step."""
        return even_quotas(counts, steps)

    def propose(self, logits: Tensor, places: Places) -> Proposal:
        """Propose the largest of logits and noise among what the tail's cut leaves."""
        drawn_from = logits
        if self.temperature > 0:
            cut = cut_tail(logits / self.temperature, self.top_p, self.top_k)
            drawn_from = logits.masked_fill(cut == -torch.inf, -torch.inf)
        tokens = gumbel_tokens(drawn_from, self.temperature, places)
        return Proposal(tokens, self.confidence(logits, tokens, places))

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Probability of the proposed tokens, without temperature and noise, ``f64[places]``."""
        return token_probability(logits.softmax(-1), tokens)

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose the most confident places."""
        assert amount is not None
        return most_confident(confidence, open_places, amount)


class LowConfidence(LladaSampler):
    """The most probable proposals first; the others stay masked.

    With blocks this is also SDAR's ``low_confidence_static``.
    """

    name: ClassVar[str] = "low-confidence"
    source: ClassVar[str] = 'LLaDA, remasking="low_confidence", its default'


class Random(LladaSampler):
    """Places in random order."""

    name: ClassVar[str] = "random"
    source: ClassVar[str] = 'LLaDA, remasking="random"'

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Uniform random numbers in place of probabilities: any place may come next."""
        return places.draws("order", 1, logits.device)[:, 0]


class Sequential(LladaSampler):
    """From left to right, equally many a step.

    Also the baseline of adaptive parallel decoding, with a fixed number of tokens a step.
    """

    name: ClassVar[str] = "sequential"
    source: ClassVar[str] = "SDAR, sequential"
    reads: ClassVar[tuple[str, ...]] = ("steps", "block")

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """The first open places."""
        assert amount is not None
        return leftmost(open_places, amount)


class Threshold(LladaSampler):
    """Every proposal of at least a certain probability, and always the best one.

    0.9 there and here, in blocks of 32.
    """

    name: ClassVar[str] = "threshold"
    source: ClassVar[str] = "Fast-dLLM, threshold"
    reads: ClassVar[tuple[str, ...]] = ("block", "late_eos")

    threshold: float = Field(default=0.9, ge=0, le=1, description="least probability that decides")

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Confidence alone says."""
        return None

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by the threshold."""
        return above(confidence, open_places, self.threshold)


class ParallelFactor(LladaSampler):
    """As many of the most probable proposals as their joint error allows.

    The largest n whose n-th best confidence is at least ``1 - factor / (n + 1)``; the factor is 1
    there and here.
    """

    name: ClassVar[str] = "factor"
    source: ClassVar[str] = "Fast-dLLM, factor"
    reads: ClassVar[tuple[str, ...]] = ("block", "late_eos")

    factor: float = Field(default=1.0, ge=0, description="how far from sure n proposals may be")

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Confidence alone says."""
        return None

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by the factor."""
        return within_factor(confidence, open_places, self.factor)


class Dynamic(LladaSampler):
    """All proposals above a threshold if there are as many as the schedule asks, else as many.

    The threshold is 0.85 there, 0.9 in some of its settings.
    """

    name: ClassVar[str] = "dynamic"
    source: ClassVar[str] = "SDAR, low_confidence_dynamic"

    threshold: float = Field(default=0.85, ge=0, le=1, description="probability that is enough")

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by threshold and schedule."""
        assert amount is not None
        return above_or_quota(confidence, open_places, self.threshold, amount)
