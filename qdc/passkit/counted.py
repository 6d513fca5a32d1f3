"""Where predictions are compared or drawn, and which states the head reads them from."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.ir.facts import ModelFacts
from qdc.passkit.head import masked_positions, sources_within
from qdc.streaming.batches import PADDING

Sources = tuple[Tensor, Tensor]
"""Rows and places of the states that some predictions are read from, ``i64[n]`` each."""


class CountedPositions(NamedTuple):
    """The positions whose predictions count.

    Attributes:
        mask: token at whose positions they do; None if they do at all that hold data.
        shift: 1 if the state before a position predicts it.
        canvas: last positions of a row, at which alone a model that writes canvases predicts; None
            for every other model.
    """

    mask: int | None
    shift: int
    canvas: int | None = None

    @classmethod
    def of(cls, model: ModelFacts, *, everywhere: bool) -> "CountedPositions":
        """Masked ones, read where the model predicts them; or all, each read at its own state.

        Of a model that takes noise out of a canvas all of the canvas, noise or not: its sampler
        looks at every place of it.

        Raises ``UnsupportedModel`` where masked ones are asked for and there is no mask token.
        """
        if model.canvas is not None:
            return cls(None, 0, model.canvas)
        return cls(None, 0) if everywhere else cls(model.mask, model.logits_shift)

    def sources(self, tokens: Tensor, segments: Tensor | None) -> Iterator[Sources]:
        """Where predictions are read from, some positions at a time.

        Args:
            tokens: ``i64[b, length]``.
            segments: ``i64[b, length]``; None if all positions of a row see each other.
        """
        for rows, places in masked_positions(self._counted(tokens, segments)):
            yield rows, sources_within(rows, places, self.shift, segments)

    def _counted(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        """``bool[b, length]``."""
        if self.mask is not None:
            return tokens == self.mask
        if self.canvas is not None:
            length = tokens.shape[1]
            return (torch.arange(length) >= length - self.canvas).expand(tokens.shape)
        if segments is None:
            return torch.ones_like(tokens, dtype=torch.bool)
        return segments != PADDING
