"""The way of samples through a model: where they stand, what is kept there, where they go next.

A route knows no values. A stream computes them at every move, and a forecast of one adds up what
that would take; both go the same way because both are routes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch

from qdc.frontend.tracer import Program
from qdc.ir.graph import Region, Stage
from qdc.ir.routing import GIVE, ROUTED
from qdc.ir.types import BYTES
from qdc.models.experts import routed_share
from qdc.streaming.execute import Executor
from qdc.streaming.frontier import values_to_keep
from qdc.streaming.states import Held

COSTLY = frozenset({"linear", "attention", "input", "embedding", "routing", GIVE})
"""Operations whose values may be kept but are not computed twice. Routing is held as weights, never
as the scores before it: rounded scores could choose other experts. What experts gave is held as one
sum, never apart: only that is bounded however uneven the routing is."""
Entrance = tuple[int, tuple[str, ...], list[Held], int]
"""Where a region was entered: boundary, names and values that are held there, number of stops."""


class Route(ABC):
    """Samples at one place of the model; between two stages only the frontier is held."""

    def __init__(
        self, program: Program, device: torch.device, batch: int, length: int, *, returns: bool
    ) -> None:
        """Stand before the first region.

        Args:
            program: the traced model; its first input takes the token ids, the others are absent.
            device: where values are computed.
            batch: samples of a whole batch.
            length: tokens of a sample.
            returns: whether what a region was entered with is held until it is left, so that the
                samples can go back there.
        """
        self.executor = Executor(program, device)
        self.graph, self.returns = program.graph, returns
        self.share = routed_share(program.module)
        """Share of the tokens that an expert gets, as if the router were even."""
        self.sizes = self.dimensions(batch, length)
        self.boundary = 0
        """Nodes before this place have been computed."""
        self.names: tuple[str, ...] = (self.executor.tokens,)
        """Of the values that are kept."""
        self.kept: list[Held] = []
        """The values, batch by batch, where they are known."""
        self.stops: list[int] = []
        """Every boundary at which values were held; each rounds them."""
        self._left = 0
        self._entrance: Entrance = (0, self.names, [], 0)

    def start(self, region: Region) -> None:
        """Advance to the first node of a region, or go back there."""
        self._go(self.executor.place[region.nodes[0]])
        self.mark()
        self.stopped()

    def enter(self, stage: Stage) -> None:
        """Advance to just before the stage's first linear, or go back there."""
        self._go(min(self.executor.place[layer] for layer in stage.layers))
        self.stopped()

    def leave(self, region: Region) -> None:
        """Advance past a region; does nothing if the samples are past it, or if none follows."""
        self._left = self.executor.place[region.nodes[-1]] + 1
        if region is not self.graph.regions[-1]:
            self.advance(self._left)
        self.mark()
        self.stopped()

    def passed(self, name: str) -> bool:
        """Whether values that hang on this node were computed, in a region not yet left."""
        return self._left <= self.executor.place[name] < self.boundary

    def rewind(self) -> None:
        """Go back to where the region was entered. Raises ``RuntimeError`` if not held."""
        if not self.returns:
            raise RuntimeError("the stream does not hold what it would go back to")
        self.boundary, self.names, kept, stops = self._entrance
        self.kept, self.stops = list(kept), self.stops[:stops]

    def mark(self) -> None:
        """Hold what is kept here as the entrance of the region, where samples can go back."""
        if self.returns:
            self._entrance = self.boundary, self.names, list(self.kept), len(self.stops)

    def stopped(self) -> None:  # noqa: B027  # a hook, where most have nothing to do
        """Called where the samples stand still: before a stage, or between two regions."""

    def advance(self, boundary: int) -> None:
        """Compute what the nodes from ``boundary`` on need, and keep the cheapest part of it."""
        if boundary <= self.boundary:
            return
        executor = self.executor
        needed = executor.read_after(boundary)
        reach = [*self.names, *executor.steps(needed, self.names)]
        keep = values_to_keep(
            executor.edges,
            reach,
            needed,
            {name: self._nbytes(name) for name in reach},
            [name for name in reach if self.graph[name].op in COSTLY],
        )
        self.move(executor.steps(keep, self.names), keep)
        self.boundary, self.names = boundary, tuple(keep)
        self.stops.append(boundary)

    @abstractmethod
    def move(self, steps: list[str], keep: frozenset[str]) -> None:
        """Execute nodes for all samples.

        Args:
            steps: names of the nodes, in order.
            keep: names of the values to keep, also those that are kept already.
        """

    def results(self, region: Region) -> tuple[str, ...]:
        """Names of the values that a region hands on: those that nodes after it read."""
        read = self.executor.read_after(self.executor.place[region.nodes[-1]] + 1)
        return tuple(name for name in region.nodes if name in read)

    def dimensions(self, samples: int, length: int) -> Mapping[str, int]:
        """Sizes of so many samples by the names of symbolic dimensions."""
        rows = max(1, round(self.share * samples * length))
        return {"B": samples, "L": length, ROUTED: rows}

    def _go(self, place: int) -> None:
        if place < self.boundary:
            self.rewind()
        self.advance(place)

    def _nbytes(self, name: str) -> int:
        kind = self.graph[name].type
        return max(1, kind.elements(self.sizes) * BYTES[kind.dtype])
