"""The loss of tokens that are drawn from the model's own predictions, and its derivatives."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdc.numerics.random_numbers import uniforms
from qdc.passkit.counted import CountedPositions
from qdc.passkit.course import Gradients
from qdc.passkit.head import head_logits, through_cap
from qdc.streaming.stream import Stream


@dataclass
class DrawnLoss:
    """The loss at positions that count; samples are drawn one after the other.

    So that it is of the same tokens however many samples are computed at once.
    """

    value: str
    """What the head reads."""
    counted: CountedPositions
    seed: int
    cap: float | None
    """What logits are bent to stay within; None if they are not."""
    samples: int = 0
    """That were looked at so far."""
    positions: int = 0
    """Predictions that were looked at so far."""

    def slopes(
        self,
        stream: Stream,
        head: Mapping[str, Tensor],
        seen: Callable[[Tensor, Tensor], None] | None = None,
    ) -> list[Gradients]:
        """Derivatives of the loss by what the head reads, batch by batch.

        Args:
            stream: the next samples, before the head.
            head: its weights by role.
            seen: is told what each prediction was read from, ``f32[n, width]``, and how unsure it
                is, as ``drawn_slope`` says.
        """
        found: list[Gradients] = []
        for index, values in enumerate(stream.compute((self.value,))):
            hidden, segments = values[self.value], stream.segments_of(index)
            slope = torch.zeros_like(hidden)
            sources = list(self.counted.sources(stream.batches()[index], segments))
            numbers = torch.bincount(torch.cat([rows for rows, _ in sources]), minlength=len(slope))
            chances = sample_chances(numbers.tolist(), self.seed, self.samples)
            parts = torch.split(chances, [len(rows) for rows, _ in sources])
            self.samples += len(slope)
            for (rows, source), chance in zip(sources, parts, strict=True):
                at = rows.to(hidden.device), source.to(hidden.device)
                drawn, unsure = drawn_slope(hidden[at], head, chance, self.cap)
                slope.index_put_(at, drawn, accumulate=True)
                self.positions += len(rows)
                if seen is not None:
                    seen(hidden[at], unsure)
            found.append({self.value: slope})
        return found


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
) -> tuple[Tensor, Tensor]:
    """The derivative of -log p of one token a position, drawn from p itself.

    Args:
        hidden: ``f32[n, width]``, what the head reads.
        head: its weights by role.
        chances: ``f32[n]`` in [0, 1), by which tokens are drawn.
        cap: what logits are bent to stay within; None if they are not.

    Returns:
        By ``hidden``, ``f32[n, width]``; and how unsure predictions are, ``f32[n]``: the curvature
        of -log p summed over what the head gives out, 1 - sum p^2 without a cap.
    """
    logits = head_logits(hidden, head, cap)
    predicted = logits.softmax(-1)
    unsure = _unsure(predicted, logits, cap)
    upto = predicted.cumsum(-1)
    wanted = chances.to(upto.device, upto.dtype)[:, None] * upto[:, -1:]
    token = torch.searchsorted(upto, wanted, right=True).clamp(max=upto.shape[1] - 1)
    del upto  # of the size of the logits, as all else here
    slope = predicted.scatter_add_(1, token, -torch.ones_like(wanted))
    return through_cap(slope, logits, cap).float() @ head["weight"], unsure


def _unsure(predicted: Tensor, logits: Tensor, cap: float | None) -> Tensor:
    """``f32[n]`` of probabilities and logits ``f64[n, vocabulary]``."""
    if cap is None:
        sizes: Tensor = torch.linalg.vector_norm(predicted, dim=-1)  # without a copy of them
        return (1 - sizes.square()).clamp(min=0).float()
    spread = through_cap(through_cap(predicted * (1 - predicted), logits, cap), logits, cap)
    return spread.sum(-1).float()
