"""The strategies: which tokens are proposed, and which of them a step decides.

A strategy sees the open places of the block alone. Proposals come with a confidence; all that is
drawn, is drawn with them, so that choosing is plain arithmetic.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.runtime.decoding.choice import (
    above,
    above_or_quota,
    below_chance,
    leftmost,
    most_confident,
    within_factor,
)
from qdc.runtime.decoding.noise import Places, gumbel
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.sampling import (
    cut_tail,
    drawn_tokens,
    gumbel_tokens,
    margin,
    negative_entropy,
    token_probability,
)
from qdc.runtime.decoding.schedule import dream_chances, dream_quotas, even_quotas


class Proposal(NamedTuple):
    """For each open place a token ``i64[places]`` and how sure it is, ``f64[places]``."""

    tokens: Tensor
    confidence: Tensor


class Strategy:
    """LLaDA's sampler, and as many places a step as an even schedule says.

    Source: LLaDA's ``generate.py``. Defaults there: 128 steps for 128 tokens, temperature 0.
    """

    def __init__(self, options: DecodeOptions) -> None:
        """Take what the strategy reads of the options."""
        self.options = options

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """What each step may decide in each row, ``[steps, rows]``; None if confidence says.

        Args:
            counts: open places of the block, ``i64[rows]``.
            steps: steps of the block, ``i64[rows]``.
        """
        return even_quotas(counts, steps)

    def propose(self, logits: Tensor, places: Places) -> Proposal:
        """Propose from finite or minus infinite logits ``f64[places, vocabulary]``."""
        options = self.options
        drawn_from = logits
        if options.temperature > 0:
            cut = cut_tail(logits / options.temperature, options.top_p, options.top_k)
            drawn_from = logits.masked_fill(cut == -torch.inf, -torch.inf)
        tokens = gumbel_tokens(drawn_from, options.temperature, places)
        return Proposal(tokens, self.confidence(logits, tokens, places))

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Probability of the proposed tokens, without temperature and noise, ``f64[places]``."""
        return token_probability(logits.softmax(-1), tokens)

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose from ``[rows, columns]``; ``amount`` is this step's of the plan."""
        assert amount is not None
        return most_confident(confidence, open_places, amount)


class LowConfidence(Strategy):
    """The most probable proposals first; the others stay masked.

    Source: LLaDA, ``remasking="low_confidence"``, its default. With blocks this is also SDAR's
    ``low_confidence_static``.
    """


class Random(Strategy):
    """Places in random order.

    Source: LLaDA, ``remasking="random"``.
    """

    def confidence(self, logits: Tensor, tokens: Tensor, places: Places) -> Tensor:
        """Uniform random numbers in place of probabilities: any place may come next."""
        return places.draws("order", 1, logits.device)[:, 0]


class Sequential(Strategy):
    """From left to right, equally many a step.

    Source: SDAR, ``sequential``; also the fixed-K baseline of adaptive parallel decoding.
    """

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """The first open places."""
        assert amount is not None
        return leftmost(open_places, amount)


class Threshold(Strategy):
    """Every proposal of at least this probability, and always the best one.

    Source: Fast-dLLM, ``threshold``, 0.9 there and here, in blocks of 32.
    """

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Confidence alone says."""
        return None

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by the threshold."""
        threshold = 0.9 if self.options.threshold is None else self.options.threshold
        return above(confidence, open_places, threshold)


class Factor(Threshold):
    """As many of the most probable proposals as their joint error allows.

    Source: Fast-dLLM, ``factor``, 1 there and here: the largest n whose n-th best confidence is at
    least ``1 - factor / (n + 1)``.
    """

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by the factor."""
        factor = 1.0 if self.options.factor is None else self.options.factor
        return within_factor(confidence, open_places, factor)


class Dynamic(Strategy):
    """All proposals above the threshold if there are as many as the schedule asks, else as many.

    Source: SDAR, ``low_confidence_dynamic``, threshold 0.85 there (0.9 in some of its settings).
    """

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by threshold and schedule."""
        assert amount is not None
        threshold = 0.85 if self.options.threshold is None else self.options.threshold
        return above_or_quota(confidence, open_places, threshold, amount)


class MaskGitPlus(Strategy):
    """Dream's sampler; the most probable proposals first.

    Source: Dream, ``alg="maskgit_plus"``: 512 steps, temperature 0. The probability is that after
    temperature and tail. With ``alg_temperature`` the places are drawn too, without replacement
    from the softmax of the confidence over it.
    """

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Dream's times."""
        return dream_quotas(counts, steps)

    def propose(self, logits: Tensor, places: Places) -> Proposal:
        """Propose from the tempered distribution without its tail."""
        options = self.options
        if options.temperature > 0:
            logits = logits / options.temperature
        probabilities = cut_tail(logits, options.top_p, options.top_k).softmax(-1)
        tokens = drawn_tokens(probabilities, options.temperature, places)
        return Proposal(tokens, self._order(self.sureness(probabilities, tokens), places))

    def sureness(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """Of proposals from ``f64[places, vocabulary]``: ``f64[places]``."""
        return token_probability(probabilities, tokens)

    def _order(self, confidence: Tensor, places: Places) -> Tensor:
        """The largest of these are what drawing places without replacement gives."""
        if not self.options.alg_temperature:
            return confidence
        noise = gumbel(places.draws("order", 1, confidence.device)[:, 0])
        return confidence / self.options.alg_temperature + noise


class TopKMargin(MaskGitPlus):
    """Places whose first token is furthest ahead of the second.

    Source: Dream, ``alg="topk_margin"``.
    """

    def sureness(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """How far the most probable token is ahead of the second, in probability."""
        return margin(probabilities)


class Entropy(MaskGitPlus):
    """Places of the least entropy.

    Source: Dream, ``alg="entropy"``, which its README uses with 512 steps, temperature 0.2 and
    top-p 0.95.
    """

    def sureness(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """The entropy, negative."""
        return negative_entropy(probabilities)


class Origin(MaskGitPlus):
    """Every place with the chance that the process of diffusion gives it, sure or not.

    Source: Dream, ``alg="origin"``, its default.
    """

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Chances instead of quotas."""
        return dream_chances(steps)

    def _order(self, confidence: Tensor, places: Places) -> Tensor:
        return places.draws("order", 1, confidence.device)[:, 0]

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by chance."""
        assert amount is not None
        return below_chance(confidence, open_places, amount)


BY_NAME: Mapping[str, type[Strategy]] = {
    "low-confidence": LowConfidence,
    "random": Random,
    "origin": Origin,
    "maskgit-plus": MaskGitPlus,
    "topk-margin": TopKMargin,
    "entropy": Entropy,
    "threshold": Threshold,
    "factor": Factor,
    "sequential": Sequential,
    "dynamic": Dynamic,
}
"""All but ``apd``, which is a loop of its own."""


def make_strategy(options: DecodeOptions) -> Strategy:
    """Build the strategy that the options name."""
    return BY_NAME[options.strategy](options)
