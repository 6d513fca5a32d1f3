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
            drawn_from = logits.masked_fill(self.tempered(logits) == -torch.inf, -torch.inf)
        tokens = gumbel_tokens(drawn_from, self.temperature, places)
        return Proposal(tokens, self.confidence(logits, tokens, places))

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits after temperature, 0 being greedy, without their tail, which is minus infinity."""
        return cut_tail(logits / (self.temperature or 1.0), self.top_p, self.top_k)

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Probability of the proposed tokens, without temperature and noise, ``f64[places]``."""
        return token_probability(logits.softmax(-1), tokens)

    def sureness_without(self, logits: Tensor, proposal: Proposal, places: Places) -> Tensor:
        """The confidence by the logits without ends, at every temperature."""
        return self.confidence(logits, proposal.tokens, places)

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose the most confident places."""
        assert amount is not None
        return most_confident(confidence, open_places, amount)


class LowConfidence(LladaSampler):
    """The most probable proposals first; the others stay masked."""

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

    The n best, where each of them, as the n-th, is at least ``1 - factor / (n + 1)`` sure; the last
    place of a block goes with the last but one. The factor is 1 there and here.
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


class Static(LladaSampler):
    """The surest proposals first, by their probability among what they are drawn from.

    Temperature and tail count in the confidence, at temperature 0 the tail alone; otherwise as
    ``low-confidence``. ``top_k`` cuts in front of ``top_p`` there and here.
    """

    name: ClassVar[str] = "static"
    source: ClassVar[str] = "SDAR, low_confidence_static"

    def tempered(self, logits: Tensor) -> Tensor:
        """Logits after temperature, then the cut to ``top_k``, then that to ``top_p``."""
        kept = cut_tail(logits / (self.temperature or 1.0), None, self.top_k)
        return cut_tail(kept, self.top_p, None)

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Probability of the proposed tokens after temperature and cuts, ``f64[places]``."""
        return token_probability(self.tempered(logits).softmax(-1), tokens)


class Dynamic(Static):
    """All proposals above a threshold if there are as many as the schedule asks, else as many.

    Confidence is that of ``static``. The threshold is 0.85 there, 0.9 in some of its settings.
    """

    name: ClassVar[str] = "dynamic"
    source: ClassVar[str] = "SDAR, low_confidence_dynamic"

    threshold: float = Field(default=0.85, ge=0, le=1, description="probability that is enough")

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by threshold and schedule."""
        assert amount is not None
        return above_or_quota(confidence, open_places, self.threshold, amount)
