"""The derivative of the loss of a token that is drawn from the model's own predictions."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from qdc.numerics.random_numbers import uniforms
from qdc.passkit.head import head_logits, through_cap


def sample_chances(numbers: Sequence[int], seed: int, first: int) -> Tensor:
    """By what tokens of samples are drawn, the same however many samples are computed at once.

    Args:
        numbers: predictions of each sample, in order.
        seed: of the draws.
        first: index of the first sample.

    Returns:
        In [0, 1), ``f32[sum of numbers]``, sample by sample.
    """
    draws = [uniforms(n, "guide", seed, sample) for sample, n in enumerate(numbers, first)]
    return torch.cat(draws)


def drawn_slope(
    hidden: Tensor, head: Mapping[str, Tensor], chances: Tensor, cap: float | None = None
) -> Tensor:
    """The derivative of -log p of one token a position, drawn from p itself.

    Args:
        hidden: ``f32[n, width]``, what the head reads.
        head: its weights by role.
        chances: ``f32[n]`` in [0, 1), by which tokens are drawn.
        cap: what logits are bent to stay within; None if they are not.

    Returns:
        By ``hidden``, ``f32[n, width]``.
    """
    logits = head_logits(hidden, head, cap)
    predicted = logits.softmax(-1)
    upto = predicted.cumsum(-1)
    wanted = chances.to(upto.device, upto.dtype)[:, None] * upto[:, -1:]
    token = torch.searchsorted(upto, wanted, right=True).clamp(max=upto.shape[1] - 1)
    slope = predicted.scatter_add(1, token, -torch.ones_like(wanted))
    return through_cap(slope, logits, cap).float() @ head["weight"]
