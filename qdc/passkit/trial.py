"""A model whose numbers move, on samples: what its predictions lose, and what changes that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qdc.passkit.course import Batch, Course, Gradients, Piece
from qdc.passkit.end_loss import Divergence, EndLoss
from qdc.passkit.tuning import Tuning
from qdc.streaming.parameters import Parameters


@dataclass(frozen=True)
class Trial:
    """One region's weights at a time are made, for all batches of a call."""

    course: Course
    loss: EndLoss
    start: Sequence[Batch]
    """All batches, before the first piece."""
    tuning: Tuning

    def now(self, batches: Sequence[int]) -> Divergence:
        """What some batches lose; scales are not rounded yet."""
        return self._divergence(batches, self.tuning.now)

    def stored(self, batches: Sequence[int]) -> Divergence:
        """The same of what would be stored now. Raises ``OverflowError``."""
        return self._divergence(batches, self.tuning.stored)

    def differentiate(self, batches: Sequence[int]) -> Divergence:
        """Add the gradients of the mean over these batches to all that moves."""
        course, tuning = self.course, self.tuning
        way = [[self.start[i] for i in batches]]
        for piece in course.pieces:
            parameters = tuning.now(piece)
            way.append([course.advance(batch, piece, parameters) for batch in way[-1]])
        found, behind = self._ends(batches, way.pop())
        for piece in reversed(course.pieces):
            parameters, moved = tuning.moving(piece)
            behind = [
                course.backward(batch, piece, parameters, gradients)[0]
                for batch, gradients in zip(way.pop(), behind, strict=True)
            ]
            tuning.collect(moved)
        return found

    def _ends(
        self, batches: Sequence[int], waiting: Sequence[Batch]
    ) -> tuple[Divergence, list[Gradients]]:
        """The loss, and its derivatives by what is held before the head."""
        name = self.course.pieces[-1].end
        positions = sum(self.loss.positions(i) for i in batches)
        total, found = 0.0, list[Gradients]()
        for index, batch in zip(batches, waiting, strict=True):
            hidden = batch.held[name].to(self.course.executor.device, torch.float32)
            part, slope = self.loss.gradient(index, hidden)
            total += part.total
            found.append({name: slope / max(1, positions)})
        return Divergence(total, positions), found

    def _divergence(
        self, batches: Sequence[int], parameters: Callable[[Piece], Parameters]
    ) -> Divergence:
        waiting = [self.start[i] for i in batches]
        for piece in self.course.pieces:
            made = parameters(piece)
            waiting = [self.course.advance(batch, piece, made) for batch in waiting]
        name, parts = self.course.pieces[-1].end, []
        for index, batch in zip(batches, waiting, strict=True):
            hidden = batch.held[name].to(self.course.executor.device, torch.float32)
            parts.append(self.loss.value(index, hidden))
        return Divergence(sum(p.total for p in parts), sum(p.positions for p in parts))
