"""Calibration samples as the model sees them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qdc.streaming.batches import PADDING, Batches


@dataclass(frozen=True)
class States:
    """Calibration samples as the model sees them; with timesteps, T rows a sample in a row."""

    clean: Tensor
    """``i64[N, length]``: the text."""
    tokens: Tensor
    """``i64[N, length]``: what goes into the model. Where it is visible it is the clean text, but
    for ``rollout`` and ``tmas``, which hold the model's own tokens behind the prompt."""
    masked: Tensor
    """``bool[N, length]``: where ``tokens`` holds the mask token, or a random one."""
    weights: Tensor
    """``f32[N, length]``: what each position counts in a second moment; 0 where it is padding, else
    1 unless options weigh tokens."""
    segments: Tensor | None = None
    """``i64[N, length]``: which positions of a row see each other (``qdc.streaming.batches``); None
    if all do, and none is padding."""
    noise: bool = False
    """Whether random tokens stand where ``masked`` says, and no mask token."""

    def batches(self, size: int) -> Batches:
        """The tokens, ``i64[size, length]`` each, with what belongs to them; the last is smaller.

        They have no weights where all that are no padding count 1: then statistics are plain means.
        """
        plain = bool((self.weights[self.data] == 1).all())
        return Batches.split(
            self.tokens,
            self.segments,
            size,
            None if plain else self.weights,
            self.masked if self.noise else None,
        )

    @property
    def data(self) -> Tensor:
        """``bool[N, length]``: which positions are no padding."""
        if self.segments is None:
            return torch.ones_like(self.masked)
        return self.segments != PADDING

    def select(self, rows: Tensor) -> "States":
        """Some rows ``i64[n]``, in their order."""
        segments = None if self.segments is None else self.segments[rows]
        return replace(
            self,
            clean=self.clean[rows],
            tokens=self.tokens[rows],
            masked=self.masked[rows],
            weights=self.weights[rows],
            segments=segments,
        )
