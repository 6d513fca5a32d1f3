"""The way of samples through a model, region by region, forwards and backwards.

Between two regions samples wait as the values that are held there, as in a ``Stream``. Backwards a
region is computed again from what is held before it, with gradients, so that never more than one
region and the states of the samples are in memory.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.ir.graph import Region, Stage
from qdc.streaming.execute import Executor
from qdc.streaming.parameters import Parameters
from qdc.streaming.states import Held, StateStore
from qdc.streaming.stream import Stream

Gradients = dict[str, Tensor]
"""By name of a value: the derivative of the loss, f32."""


class Piece(NamedTuple):
    """What is computed at a time: a region, and what lies between it and the next one.

    Attributes:
        region: that it is of; the last piece reaches up to the output head.
        steps: nodes to execute.
        given: values that it computes and that are held behind it.
        staying: values that are held before it and behind it.
    """

    region: Region
    steps: list[str]
    given: tuple[str, ...]
    staying: tuple[str, ...]

    @property
    def end(self) -> str:
        """Of the last piece: what the head reads."""
        (name,) = (*self.given, *self.staying)
        return name


def pieces(stream: Stream, head: Stage) -> Iterator[tuple[Piece, list[Held]]]:
    """Move a stream from the first region to the head.

    Yields each piece once it is behind the stream, and where batches have waited before it.
    """
    graph, order = stream.graph, stream.order
    stream.start(graph.regions[0])
    for region in graph.regions:
        held, kept = stream.names, list(stream.kept)
        if region is graph.regions[-1]:
            stream.enter(head)
            wanted: tuple[str, ...] = (head.value,)
        else:
            stream.leave(region)
            wanted = stream.names
        given = tuple(name for name in wanted if name not in held)
        staying = tuple(name for name in wanted if name in held)
        yield Piece(region, order.steps(given, held), given, staying), kept


class Batch(NamedTuple):
    """Samples where they wait.

    Attributes:
        held: the values there.
        segments: ``i64[b, length]``, which positions see each other; None if all do.
        masked: ``bool[b, length]``, which tokens are masked; None where no linear asks for it.
    """

    held: Held
    segments: Tensor | None
    masked: Tensor | None = None


def batches_of(stream: Stream) -> list[Batch]:
    """Where the batches of a stream wait now."""
    return [
        Batch(held, stream.segments_of(i), stream.masked_of(i))
        for i, held in enumerate(stream.kept)
    ]


@dataclass(frozen=True)
class Course:
    """Pieces of a model in their order, and where values wait between them."""

    executor: Executor
    states: StateStore
    pieces: tuple[Piece, ...]

    @torch.no_grad()
    def advance(self, batch: Batch, piece: Piece, parameters: Parameters) -> Batch:
        """Run one piece."""
        found = self.executor.run(
            batch.held, piece.steps, parameters, piece.given, batch.segments, batch.masked
        )
        found |= {name: batch.held[name] for name in piece.staying}
        return batch._replace(held=self.states.hold(found))

    def backward(
        self,
        batch: Batch,
        piece: Piece,
        parameters: Parameters,
        behind: Gradients,
        watched: tuple[str, ...] = (),
    ) -> tuple[Gradients, Gradients]:
        """Run one piece again, and take gradients back through it.

        Args:
            batch: before the piece.
            piece: of the course.
            parameters: leaves that require gradients get theirs added.
            behind: derivatives of the values that are held behind the piece.
            watched: values inside of the piece.

        Returns:
            Derivatives of the floating values that are held before it, and of those watched.
        """
        executor = self.executor
        leaves = {
            name: value.to(executor.device, torch.float32).requires_grad_()
            for name, value in batch.held.items()
            if value.is_floating_point()
        }
        held = {**batch.held, **leaves}
        wanted = (*piece.given, *watched)
        found = executor.run(held, piece.steps, parameters, wanted, batch.segments, batch.masked)
        for name in watched:
            found[name].retain_grad()
        reached = [name for name in piece.given if found[name].requires_grad and name in behind]
        push_back([(found[name], behind[name].to(executor.device)) for name in reached])
        before = {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
        for name in piece.staying:
            if name in behind:
                before[name] = before[name] + behind[name] if name in before else behind[name]
        slopes = ((name, found[name].grad) for name in watched)
        seen = {n: torch.zeros_like(found[n]) if grad is None else grad for n, grad in slopes}
        return before, seen


def push_back(values: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Take derivatives of values back to the leaves; both of each pair have one shape.

    As the derivative of their products' sum: handed over as they are, torch would import a library
    of symbols to compare shapes, 50 MB that stay in the process.
    """
    sums = [(value * slope).sum() for value, slope in values]
    if sums:
        torch.autograd.backward(torch.stack(sums).sum())
