"""Which token a place would take: the two samplers of the field, in float64.

LLaDA's adds Gumbel noise to the logits and takes the largest; its confidence looks at the logits as
they are. Dream's divides by the temperature, cuts the tail off, and draws; its confidence looks at
what it draws from. Source: shared facts on the ecosystem (B.1, B.2).
"""

import torch
from torch import Tensor

from qdc.numerics.noise import Places, gumbel


def cut_tail(logits: Tensor, top_p: float | None, top_k: int | None) -> Tensor:
    """Set all but the likeliest tokens of ``f64[places, vocabulary]`` to minus infinity.

    First ``top_p``: a token stays if those likelier than it hold at most this probability, so one
    always does. Then ``top_k``: tokens as likely as the last that stays, stay as well.
    """
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        above = ordered.softmax(-1).cumsum(-1).roll(1, dims=-1)
        above[:, 0] = 0.0
        gone = torch.zeros_like(above, dtype=torch.bool).scatter(-1, order, above > top_p)
        logits = logits.masked_fill(gone, -torch.inf)
    if top_k is not None and top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits


def gumbel_tokens(logits: Tensor, temperature: float, places: Places) -> Tensor:
    """LLaDA's draw from ``f64[places, vocabulary]``: ``i64[places]``.

    The largest of ``exp(logits) / (-log u) ** temperature``, of which this is the logarithm.
    """
    if temperature == 0:
        return logits.argmax(-1)
    noise = gumbel(places.draws("token", logits.shape[-1], logits.device))
    return (logits + temperature * noise).argmax(-1)


def drawn_tokens(probabilities: Tensor, temperature: float, places: Places) -> Tensor:
    """Dream's draw from ``f64[places, vocabulary]``: ``i64[places]``, the largest at 0.

    One uniform number a place, looked up in the sums of the probabilities.
    """
    if temperature == 0:
        return probabilities.argmax(-1)
    sums = probabilities.cumsum(-1)
    # Scaled by the last sum, so that rounding cannot place the number behind every token.
    aim = places.draws("token", 1, sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, aim, right=True)[:, 0].clamp(max=sums.shape[-1] - 1)


def token_probability(probabilities: Tensor, tokens: Tensor) -> Tensor:
    """Probability of the token of each place, ``f64[places]``."""
    return probabilities.gather(-1, tokens[:, None])[:, 0]


def margin(probabilities: Tensor) -> Tensor:
    """How far the likeliest token is ahead of the second, ``f64[places]``."""
    if probabilities.shape[-1] < 2:
        return torch.ones_like(probabilities[:, 0])
    first, second = probabilities.topk(2, dim=-1).values.unbind(-1)
    return first - second


def negative_entropy(probabilities: Tensor) -> Tensor:
    """Sum of p log p, at most 0, which is sure: ``f64[places]``."""
    entropy: Tensor = torch.special.entr(probabilities).sum(-1)
    return -entropy
