"""Dream's sampler and its strategies."""

from typing import ClassVar

from torch import Tensor

from qdc.numerics.noise import Places, gumbel
from qdc.pipeline.strategybase import Proposal, Stepwise
from qdc.runtime.decoding.choice import below_chance, most_confident
from qdc.runtime.decoding.options import PlaceTemperature, Temperature, TopK, TopP
from qdc.runtime.decoding.sampling import (
    cut_tail,
    drawn_tokens,
    margin,
    negative_entropy,
    token_probability,
)
from qdc.runtime.decoding.schedule import dream_chances, dream_quotas


class DreamSampler(Stepwise):
    """Dream's sampler, and as many places a step as its times say.

    Source: Dream's ``diffusion_generate``: 512 steps, temperature 0. Confidence looks at what is
    drawn from: the distribution after temperature and tail.
    """

    temperature: Temperature = 0.0
    top_p: TopP = None
    top_k: TopK = None

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Quotas by Dream's grid of times."""
        return dream_quotas(counts, steps)

    def propose(self, logits: Tensor, places: Places) -> Proposal:
        """Propose from the tempered distribution without its tail."""
        if self.temperature > 0:
            logits = logits / self.temperature
        probabilities = cut_tail(logits, self.top_p, self.top_k).softmax(-1)
        tokens = drawn_tokens(probabilities, self.temperature, places)
        return Proposal(tokens, self.order(self.sureness(probabilities, tokens), places))

    def sureness(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """Of proposals from ``f64[places, vocabulary]``: ``f64[places]``."""
        return token_probability(probabilities, tokens)

    def order(self, sureness: Tensor, places: Places) -> Tensor:
        """The confidence that places are chosen by: ``f64[places]``."""
        return sureness

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose the most confident places."""
        assert amount is not None
        return most_confident(confidence, open_places, amount)


class MaskGitPlus(DreamSampler):
    """The most probable proposals first.

    With ``alg_temperature`` the places are drawn too, without replacement from the softmax of the
    confidence over it.
    """

    name: ClassVar[str] = "maskgit-plus"
    source: ClassVar[str] = 'Dream, alg="maskgit_plus"'

    alg_temperature: PlaceTemperature = 0.0

    def order(self, sureness: Tensor, places: Places) -> Tensor:
        """The largest of these are what drawing places without replacement gives."""
        if not self.alg_temperature:
            return sureness
        noise = gumbel(places.draws("order", 1, sureness.device)[:, 0])
        return sureness / self.alg_temperature + noise


class TopKMargin(MaskGitPlus):
    """Places whose first token is furthest ahead of the second."""

    name: ClassVar[str] = "topk-margin"
    source: ClassVar[str] = 'Dream, alg="topk_margin"'

    def sureness(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """How far the most probable token is ahead of the second, in probability."""
        return margin(probabilities)


class Entropy(MaskGitPlus):
    """Places of the least entropy.

    Dream's README uses it with 512 steps, temperature 0.2 and top-p 0.95.
    """

    name: ClassVar[str] = "entropy"
    source: ClassVar[str] = 'Dream, alg="entropy"'

    def sureness(self, probabilities: Tensor, tokens: Tensor) -> Tensor:
        """The entropy, negative."""
        return negative_entropy(probabilities)


class Origin(DreamSampler):
    """Every place with the chance that the process of diffusion gives it, sure or not."""

    name: ClassVar[str] = "origin"
    source: ClassVar[str] = 'Dream, alg="origin", its default'
    reads: ClassVar[tuple[str, ...]] = ("steps", "block")

    def plan(self, counts: Tensor, steps: Tensor) -> Tensor | None:
        """Chances instead of quotas."""
        return dream_chances(steps)

    def order(self, sureness: Tensor, places: Places) -> Tensor:
        """Uniform random numbers, which are compared with the chances."""
        return places.draws("order", 1, sureness.device)[:, 0]

    def choose(self, confidence: Tensor, open_places: Tensor, amount: Tensor | None) -> Tensor:
        """Choose by chance."""
        assert amount is not None
        return below_chance(confidence, open_places, amount)
