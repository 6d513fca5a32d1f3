"""Predictions for the decoding loop from a model that is streamed, not held.

The loop and its strategies are those of ``qdc generate``; only what they read from differs. A step
of all samples is one sweep through the model, of the samples that have open places.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from qdc.passkit.head import POSITIONS
from qdc.passkit.predictor import Predictor
from qdc.runtime.decoding.canvas import Canvas
from qdc.streaming.batches import Batches

Part = tuple[Tensor, Tensor]
"""Which of the places that were asked for, ``i64[n]``, and their logits."""


class StreamedReader:
    """Reads whole texts, with nothing cached, ``batch`` rows at once."""

    cache = "none"

    def __init__(
        self, predictor: Predictor, canvas: Canvas, batch: int, segments: Tensor | None = None
    ) -> None:
        """Prepare a batch of any size.

        Args:
            predictor: the model.
            canvas: tokens are read from it at each call.
            batch: rows computed at once.
            segments: ``i64[rows, T]``: which positions see each other; None if all of a row do.
        """
        self.predictor, self.canvas, self.batch, self.segments = predictor, canvas, batch, segments
        self.rows = torch.arange(len(canvas.tokens))
        self.forwards = 0

    def keep_rows(self, kept: Tensor) -> None:
        """Go on with these of the rows, ``bool[rows]``."""
        self.rows = self.rows[kept]

    def begin(self, first: int, last: int) -> None:
        """Turn to a block; the whole text is read whatever it is."""

    def parts(self, rows: Tensor, columns: Tensor) -> Iterator[Part]:
        """Predict single places, in one sweep; see ``Predicts``."""
        self.forwards += 1
        rows = self.rows[rows]
        asked = torch.full(self.canvas.tokens.shape, -1)
        asked[rows, columns] = torch.arange(len(rows))
        some = torch.split((asked >= 0).any(1).nonzero()[:, 0], self.batch)
        empty = self._empty(rows)
        wanted = (asked >= 0) & ~(empty[:, None] & _behind_first(asked >= 0))
        apart = None if self.segments is None else [self.segments[each] for each in some]
        batches = Batches([self.canvas.tokens[each] for each in some], apart)
        found = self.predictor.logits(batches, [wanted[each] for each in some])
        for each, parts in zip(some, found, strict=True):
            for row, place, logits in parts:
                yield from _alike(asked, empty, each[row], place, logits)

    def _empty(self, rows: Tensor) -> Tensor:
        """Rows of masks alone, ``bool[rows]``, whose places nothing tells apart.

        As for the reader of a model that is held, one place gives the logits of all, so that
        strategies see a tie and not the rounding of the model.
        """
        found = torch.zeros(len(self.canvas.tokens), dtype=torch.bool)
        if self.predictor.windowed and self.segments is None:
            mask = self.predictor.graph.model.mask
            found[rows] = (self.canvas.tokens[rows] == mask).all(1)
        return found


def _behind_first(wanted: Tensor) -> Tensor:
    """All places of ``bool[rows, T]`` but the first of each row."""
    return wanted & (wanted.long().cumsum(1) > 1)


def _alike(
    asked: Tensor, empty: Tensor, rows: Tensor, places: Tensor, logits: Tensor
) -> Iterator[Part]:
    """Logits as they are, and once more for all places of rows of masks alone."""
    alone = ~empty[rows]
    if bool(alone.all()):
        yield asked[rows, places], logits
        return
    yield asked[rows[alone], places[alone]], logits[alone.to(logits.device)]
    for number in (~alone).nonzero()[:, 0].tolist():
        here = asked[rows[number]]
        for some in torch.split(here[here >= 0], POSITIONS):
            yield some, logits[number].expand(len(some), -1).clone()
