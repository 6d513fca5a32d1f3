"""DiffusionGemma's sampler: random tokens are taken out of a canvas, the surest first.

A canvas begins as tokens that are drawn uniformly from the vocabulary. Each step draws a token for
every place, at a temperature that falls, accepts the places of least entropy as long as what they
can know of each other stays below a bound, and draws all others anew. Nothing that was accepted is
settled: the next step may reject it. When the most probable tokens have not changed for some steps
and are sure, they are the text. Source: transformers 5.24, ``generation_diffusion_gemma.py``; the
bound is that of arXiv 2505.24857.
"""

from typing import ClassVar, NamedTuple, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from qdc.numerics.noise import Places
from qdc.pipeline.strategybase import Strategy
from qdc.runtime.decoding.options import SMALLEST
from qdc.runtime.decoding.sampling import drawn_tokens, negative_entropy

SLICE = 32
"""Places whose distributions are held in float64 at a time: vocabularies are large."""


class Renoise(Strategy):
    """Random tokens are taken out of a canvas, the surest first; the others are drawn anew.

    A loop of its own, ``denoising_loop``, runs it. The defaults are those of transformers.
    """

    name: ClassVar[str] = "renoise"
    source: ClassVar[str] = "DiffusionGemma, entropy bound, its default"

    entropy_bound: float = Field(
        default=0.1, gt=0, description="nats that accepted places may know of each other"
    )
    denoising_steps: int = Field(
        default=48, ge=1, le=1 << 12, description="of a canvas, at most; one that is sure ends"
    )
    first_temperature: float = Field(
        default=0.8, ge=SMALLEST, le=100, description="of a canvas of noise"
    )
    last_temperature: float = Field(
        default=0.4, ge=SMALLEST, le=100, description="that the steps fall to, evenly"
    )
    stability: int = Field(
        default=1, ge=0, le=1 << 10, description="steps without a change that end a canvas"
    )
    confidence: float = Field(
        default=0.005, gt=0, description="nats of mean entropy below which a canvas may end"
    )
    greedy: bool = Field(
        default=False, description="take the most probable token of a place, and draw noise alone"
    )

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.last_temperature > self.first_temperature:
            raise ValueError(
                f"last-temperature {self.last_temperature:g} is above first-temperature "
                f"{self.first_temperature:g}, and it falls"
            )
        return self

    def temperature(self, left: int) -> float:
        """Of a step, by how many steps are left, it among them."""
        share = left / self.denoising_steps
        return self.last_temperature + (self.first_temperature - self.last_temperature) * share


class Draft(NamedTuple):
    """What one step would write at each place, on the CPU."""

    tokens: Tensor
    """Drawn, ``i64[rows, canvas]``."""
    best: Tensor
    """The most probable, ``i64[rows, canvas]``."""
    entropy: Tensor
    """Of the tempered distribution in nats, ``f64[rows, canvas]``."""


def draw_draft(logits: Tensor, strategy: Renoise, places: Places) -> Draft:
    """Draw a token for each place.

    Args:
        logits: over the step's temperature, ``f32[rows, canvas, vocabulary]``.
        strategy: says whether tokens are drawn at all.
        places: what noise is drawn from, row by row.
    """
    rows, size, _ = logits.shape
    flat = logits.flatten(0, 1)
    tokens, best = (torch.zeros(rows * size, dtype=torch.int64) for _ in range(2))
    entropy = torch.zeros(rows * size, dtype=torch.float64)
    for start in range(0, rows * size, SLICE):
        part = slice(start, start + SLICE)
        probabilities = flat[part].double().softmax(-1)
        best[part] = flat[part].argmax(-1).cpu()
        entropy[part] = -negative_entropy(probabilities).cpu()
        if not strategy.greedy:
            here = Places(places.seeds[part], places.positions[part], places.step)
            tokens[part] = drawn_tokens(probabilities, 1.0, here).cpu()
    found = (best if strategy.greedy else tokens, best, entropy)
    return Draft(*(each.view(rows, size) for each in found))


def accepted(entropy: Tensor, bound: float) -> Tensor:
    """Places that may be decided together, by their entropy ``f64[rows, canvas]``: ``bool``.

    The surest n, for the largest n at which the entropies of all but the least sure of them add up
    to the bound at most; the surest one always. Of equally sure places the left one goes first.
    """
    ordered, order = entropy.sort(dim=1, stable=True)
    within = ordered.cumsum(1) - ordered <= bound
    return torch.zeros_like(within).scatter(1, order, within)


def random_tokens(places: Places, kind: str, vocabulary: int) -> Tensor:
    """Draw a token for each place, all equally likely: ``i64[places]``."""
    return (places.draws(kind, 1)[:, 0] * vocabulary).long()


class Ending:
    """Which canvases of a batch are stable and sure; it remembers the steps before."""

    def __init__(self, strategy: Renoise) -> None:
        """Begin a canvas."""
        self.strategy = strategy
        self._before: list[Tensor] = []

    def after(self, draft: Draft) -> Tensor:
        """Whether each canvas may end with this step, ``bool[rows]``."""
        strategy, wanted = self.strategy, self.strategy.stability
        stable = torch.full(draft.best.shape[:1], len(self._before) >= wanted)
        for best in self._before:
            stable &= (best == draft.best).all(1)
        self._before = [*self._before, draft.best][-wanted:] if wanted else []
        return stable & (draft.entropy.mean(1) < strategy.confidence)
