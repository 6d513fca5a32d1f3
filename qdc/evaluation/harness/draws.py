"""Masks of a likelihood, from what is scored alone: every model sees the same ones.

An estimate is minus a weighted sum: over masks, of the cross-entropy of all masked tokens. Both
ways to draw give an unbiased estimate of one bound on the log-likelihood.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qdc.numerics.random_numbers import uniforms

GROUP = 32
"""Masks that are stratified together: the published batch."""
LEAST = 1e-3
"""Dream's smallest mask probability."""


class Draws(NamedTuple):
    """Masks ``bool[m, size]``, none of them twice and none empty, and weights ``f64[m]``."""

    masks: Tensor
    weights: Tensor


def exact_counts(size: int, number: int, key: str) -> Draws:
    """LLaDA's: mask exactly x of the tokens, the counts x spread evenly over 1..size.

    In a group of b masks the first count k is uniform in 1..size, and mask i has the count
    ``((round(k + i * size / b) - 1) mod size) + 1``. Weight ``size / x``. Halves are rounded up;
    the published code rounds them to even, which favours even counts: with 32 masks of 8 tokens
    they come in 5 of 32, odd ones in 3. Source: ``get_log_likelihood.py`` of ML-GSAI/LLaDA, where b
    is the batch size.
    """
    counts = []
    for group, start in enumerate(range(0, number, GROUP)):
        many = min(GROUP, number - start)
        first = 1 + int(float(uniforms(1, key, "count", group)) * size)
        steps = first + torch.arange(many, dtype=torch.float64) * size / many
        counts.append(((steps + 0.5).floor().long() - 1) % size + 1)
    count = torch.cat(counts)
    order = uniforms(number * size, key, "order").view(number, size).argsort(dim=1, stable=True)
    return _merged(order.argsort(1) < count[:, None], size / count.double() / number)


def even_times(size: int, number: int, key: str) -> Draws:
    """Dream's: mask each token with probability ``p = 0.999 t + 0.001``.

    In a group of b masks the times are ``(u + i / b) mod 1``. Weight ``1 / p``. Source: the
    evaluation of DreamLM/Dream.
    """
    times = []
    for group, start in enumerate(range(0, number, GROUP)):
        many = min(GROUP, number - start)
        first = float(uniforms(1, key, "time", group))
        times.append((first + torch.arange(many, dtype=torch.float64) / many) % 1)
    chance = (1 - LEAST) * torch.cat(times) + LEAST
    draws = uniforms(number * size, key, "mask").view(number, size).double()
    return _merged(draws < chance[:, None], 1 / chance / number)


def _merged(masks: Tensor, weights: Tensor) -> Draws:
    """Add up the weights of equal masks; empty ones contribute nothing."""
    found, places = torch.unique(masks, dim=0, return_inverse=True)
    added = torch.zeros(len(found), dtype=torch.float64).index_add_(0, places, weights)
    filled = found.any(1)
    return Draws(found[filled], added[filled])
