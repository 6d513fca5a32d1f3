"""What predictions lose against the original's, and how that hangs on what the head reads.

The divergence is KL(original, now), averaged over positions that count: masked ones, or all of them
where none are masked. Logits exist for ``POSITIONS`` positions at a time, never for a batch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from qdc.passkit.head import masked_positions, sources_within
from qdc.streaming.batches import PADDING
from qdc.streaming.states import Held, StateStore


class Places(NamedTuple):
    """Where the hidden states stand that predictions are read from, some positions of a batch.

    Attributes:
        rows: ``i64[n]``, of the batch.
        positions: ``i64[n]``.
    """

    rows: Tensor
    positions: Tensor


class Divergence(NamedTuple):
    """Of some positions together.

    Attributes:
        total: sum over positions, nats.
        positions: their number.
    """

    total: float
    positions: int

    @property
    def mean(self) -> float:
        """Nats a position; 0 without one, infinite where predictions are no numbers."""
        each = self.total / max(1, self.positions)
        return math.inf if math.isnan(each) else max(0.0, each)


@dataclass
class EndLoss:
    """The original's predictions of some batches, and what others lose against them."""

    original: Mapping[str, Tensor]
    """The head of the original model by role, f32 on the device."""
    now: Mapping[str, Tensor]
    """The head as it is now."""
    shift: int
    """1 if the state before a position predicts it, and predictions count at masked ones."""
    mask: int | None
    """Token whose positions count; None if all count."""
    states: StateStore
    _places: list[list[Places]] = field(default_factory=list)
    _right: list[Held] = field(default_factory=list)

    def add(self, tokens: Tensor, segments: Tensor | None, hidden: Tensor) -> None:
        """Keep what the original's head reads of the next batch, ``f32[b, length, width]``."""
        places = [
            Places(rows, sources_within(rows, at, self.shift, segments))
            for rows, at in masked_positions(self.counted(tokens, segments))
        ]
        self._places.append(places)
        right = [hidden[_index(part, hidden)] for part in places]
        kept = torch.cat(right) if right else hidden.new_zeros(0, hidden.shape[-1])
        self._right.append(self.states.hold({"hidden": kept}))

    def counted(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        """Positions whose predictions count, ``bool[b, length]``."""
        if self.mask is not None:
            return tokens == self.mask
        return (
            torch.ones_like(tokens, dtype=torch.bool) if segments is None else segments != PADDING
        )

    def positions(self, batch: int) -> int:
        """Number of positions of a batch that count."""
        return sum(len(part.rows) for part in self._places[batch])

    @torch.no_grad()
    def value(self, batch: int, hidden: Tensor) -> Divergence:
        """What a batch loses, from what the head reads now, ``f32[b, length, width]``."""
        total = 0.0
        for _, right, wrong in self._parts(batch, hidden):
            total += float((right.exp() * (right - wrong)).sum(dtype=torch.float64))
        return Divergence(total, self.positions(batch))

    @torch.no_grad()
    def gradient(self, batch: int, hidden: Tensor) -> tuple[Divergence, Tensor]:
        """The same, and the derivative of the sum by ``hidden``, of its shape."""
        total, found = 0.0, torch.zeros_like(hidden)
        for part, right, wrong in self._parts(batch, hidden):
            total += float((right.exp() * (right - wrong)).sum(dtype=torch.float64))
            # The derivative of a divergence by the logits is what both predict differently.
            slope = wrong.exp_().sub_(right.exp_()) @ self.now["weight"]
            found.index_put_(_index(part, hidden), slope, accumulate=True)
        return Divergence(total, self.positions(batch)), found

    def _parts(self, batch: int, hidden: Tensor) -> Iterator[tuple[Places, Tensor, Tensor]]:
        """Places, and logarithms of the original's and of today's predictions there."""
        right = self._right[batch]["hidden"]
        start = 0
        for part in self._places[batch]:
            end = start + len(part.rows)
            kept = right[start:end].to(hidden.device, torch.float32)
            found = hidden[_index(part, hidden)]
            yield part, _predictions(kept, self.original), _predictions(found, self.now)
            start = end


def _predictions(hidden: Tensor, head: Mapping[str, Tensor]) -> Tensor:
    return functional.linear(hidden, head["weight"], head.get("bias")).log_softmax(-1)


def _index(part: Places, values: Tensor) -> tuple[Tensor, Tensor]:
    return part.rows.to(values.device), part.positions.to(values.device)
