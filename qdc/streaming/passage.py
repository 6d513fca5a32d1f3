"""A calibration stream without data: where it stands, what it holds, what each step costs.

It takes the same steps as ``qdc.streaming.stream.Stream`` and chooses what to keep by the same
minimum cut, so it holds as many bytes at every boundary; a test compares the two.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch

from qdc.frontend.tracer import Program
from qdc.ir.graph import LINEAR, Region, Stage
from qdc.ir.routing import ROUTED
from qdc.ir.types import BYTES
from qdc.models.experts import routed_share
from qdc.streaming.execute import Executor
from qdc.streaming.frontier import values_to_keep
from qdc.streaming.stream import COSTLY
from qdc.streaming.work import Work, bytes_of, node_work

FP32 = 4


@dataclass(frozen=True)
class Step:
    """One run of some nodes over all samples."""

    work: Work
    nbytes: int
    """Most bytes of values and decoded parameters at a time, on the device."""


class Passage:
    """Samples on their way through the graph."""

    def __init__(
        self,
        program: Program,
        *,
        samples: int,
        length: int,
        batch: int,
        held: int,
        returns: bool,
        decoding: Callable[[str], int],
    ) -> None:
        """Start before the first region.

        Args:
            program: the traced model.
            samples: rows of token ids.
            length: tokens of a row.
            batch: rows computed at once.
            held: bytes of a float between stages.
            returns: whether the entrance of a region is held until it is left.
            decoding: node name to the bytes that its parameters take besides fp32 while they are
                made ready.
        """
        self.executor = Executor(program, torch.device("cpu"))
        self.graph = program.graph
        self.samples, self.batch = samples, min(batch, samples)
        self.share = routed_share(program.module)
        """Share of the tokens that an expert gets: the mean, as if the router were even."""
        self.sizes = self._dimensions(self.batch, length)
        self.held, self.returns, self.decoding = held, returns, decoding
        self.boundary = 0
        self.kept: frozenset[str] = frozenset({self.executor.tokens})
        self._entrance = (self.boundary, self.kept)
        self.linear_calls = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return self.samples * self.sizes["L"]

    def tokens_of(self, stage: Stage) -> float:
        """Tokens of all samples that a stage reads: of an expert those routed to it, on average."""
        return self.tokens * self._share(stage.value)

    def nbytes(self) -> int:
        """What is held now, the entrance of the region included."""
        places = {(self.boundary, name) for name in self.kept}
        if self.returns:
            boundary, names = self._entrance
            places |= {(boundary, name) for name in names}
        sizes = self._dimensions(self.samples, self.sizes["L"])
        return sum(bytes_of(self.graph[name].type, sizes, self.held) for _, name in places)

    def start(self, region: Region) -> Step | None:
        """Go to the first node of a region, forwards or back."""
        step = self._to(self.executor.place[region.nodes[0]])
        self._mark()
        return step

    def enter(self, stage: Stage) -> Step | None:
        """Go to a stage, forwards or back."""
        return self._to(min(self.executor.place[layer] for layer in stage.layers))

    def leave(self, region: Region) -> Step | None:
        """Go past a region unless it is the last."""
        place = self.executor.place[region.nodes[-1]] + 1
        last = region == self.graph.regions[-1]
        step = self._advance(place) if not last and place > self.boundary else None
        self._mark()
        return step

    def compute(self, wanted: Collection[str]) -> Step:
        """Compute values ahead of the boundary; nothing moves."""
        return self._run(self.executor.steps(wanted, self.kept), wanted)

    def results(self, region: Region) -> tuple[str, ...]:
        """What a region hands on."""
        read = self.executor.read_after(self.executor.place[region.nodes[-1]] + 1)
        return tuple(name for name in region.nodes if name in read)

    def _to(self, place: int) -> Step | None:
        if place < self.boundary:
            self.boundary, self.kept = self._entrance
        return self._advance(place) if place > self.boundary else None

    def _mark(self) -> None:
        self._entrance = (self.boundary, self.kept)

    def _advance(self, boundary: int) -> Step:
        executor = self.executor
        needed = executor.read_after(boundary)
        reach = [*self.kept, *executor.steps(needed, self.kept)]
        sizes = {name: max(1, self._size(name)) for name in reach}
        costly = [name for name in reach if self.graph[name].op in COSTLY]
        keep = values_to_keep(executor.edges, reach, needed, sizes, costly)
        step = self._run(executor.steps(keep, self.kept), keep)
        self.boundary, self.kept = boundary, keep
        return step

    def _dimensions(self, samples: int, length: int) -> dict[str, int]:
        rows = max(1, round(self.share * samples * length))
        return {"B": samples, "L": length, ROUTED: rows}

    def _share(self, name: str) -> float:
        return self.share if self.graph[name].type.shape[:1] == (ROUTED,) else 1.0

    def _size(self, name: str) -> int:
        kind = self.graph[name].type
        return kind.elements(self.sizes) * BYTES[kind.dtype]

    def _run(self, steps: list[str], wanted: Collection[str]) -> Step:
        """Walk through the steps as the executor does, values dropped after their last reader."""
        edges, graph = self.executor.edges, self.graph
        last = {read: step for step in steps for read in edges.predecessors(step)}
        live = {name: bytes_of(graph[name].type, self.sizes, FP32) for name in self.kept}
        ready = sum(FP32 * p.elements({}) for name in steps for p in graph[name].parameters)
        made = [self.decoding(name) for name in steps if graph[name].parameters]
        highest, work = sum(live.values()), Work()
        batches = self.samples / self.batch
        for name in steps:
            work += node_work(graph, name, self.sizes)
            live[name] = bytes_of(graph[name].type, self.sizes, FP32)
            highest = max(highest, sum(live.values()))
            for read in edges.predecessors(name):
                if last[read] == name and read not in wanted:
                    live.pop(read, None)
            if graph[name].op == LINEAR:
                self.linear_calls += self.samples * self._share(name)
        total = Work(*(batches * part for part in (work.products, work.exact, work.elements)))
        return Step(total, ready + max([highest, *made]))
