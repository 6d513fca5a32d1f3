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

from qdc.numerics.products import linear, product
from qdc.passkit.counted import CountedPositions, Sources
from qdc.passkit.head import bent, through_cap
from qdc.streaming.states import Held, StateStore


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
    counted: CountedPositions
    states: StateStore
    cap: float | None = None
    """What logits are bent to stay within, behind the head; None if they are not."""
    _sources: list[list[Sources]] = field(default_factory=list)
    _right: list[Held] = field(default_factory=list)

    def add(self, tokens: Tensor, segments: Tensor | None, hidden: Tensor) -> None:
        """Keep what the original's head reads of the next batch, ``f32[b, length, width]``."""
        sources = list(self.counted.sources(tokens, segments))
        self._sources.append(sources)
        right = [hidden[_index(part, hidden)] for part in sources]
        kept = torch.cat(right) if right else hidden.new_zeros(0, hidden.shape[-1])
        self._right.append(self.states.hold({"hidden": kept}))

    def positions(self, batch: int) -> int:
        """Number of positions of a batch that count."""
        return sum(len(part[0]) for part in self._sources[batch])

    @torch.no_grad()
    def value(self, batch: int, hidden: Tensor) -> Divergence:
        """What a batch loses, from what the head reads now, ``f32[b, length, width]``."""
        total = 0.0
        for _, right, logits in self._parts(batch, hidden):
            wrong = logits.log_softmax(-1)
            total += float((right.exp() * (right - wrong)).sum(dtype=torch.float64))
        return Divergence(total, self.positions(batch))

    @torch.no_grad()
    def gradient(self, batch: int, hidden: Tensor) -> tuple[Divergence, Tensor]:
        """The same, and the derivative of the sum by ``hidden``, of its shape."""
        total, found = 0.0, torch.zeros_like(hidden)
        for part, right, logits in self._parts(batch, hidden):
            wrong = logits.log_softmax(-1)
            total += float((right.exp() * (right - wrong)).sum(dtype=torch.float64))
            # The derivative of a divergence by the logits is what both predict differently.
            slope = through_cap(wrong.exp_().sub_(right.exp_()), logits, self.cap)
            found.index_put_(
                _index(part, hidden), product(slope, self.now["weight"]), accumulate=True
            )
        return Divergence(total, self.positions(batch)), found

    def _parts(self, batch: int, hidden: Tensor) -> Iterator[tuple[Sources, Tensor, Tensor]]:
        """Where they are read from, logarithms of the original's predictions, today's logits."""
        held = self._right[batch]["hidden"]
        start = 0
        for part in self._sources[batch]:
            end = start + len(part[0])
            kept = held[start:end].to(hidden.device, torch.float32)
            found = hidden[_index(part, hidden)]
            right = self._logits(kept, self.original).log_softmax(-1)
            yield part, right, self._logits(found, self.now)
            start = end

    def _logits(self, hidden: Tensor, head: Mapping[str, Tensor]) -> Tensor:
        """``f32[n, vocabulary]``."""
        return bent(linear(hidden, head["weight"], head.get("bias")), self.cap)


def _index(part: Sources, values: Tensor) -> Sources:
    rows, positions = part
    return rows.to(values.device), positions.to(values.device)
