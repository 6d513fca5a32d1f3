"""A calibration stream without data: what it holds at each place, and what each move would take."""

from collections.abc import Collection
from dataclasses import dataclass

import torch

from qdc.ir.graph import LINEAR, Stage
from qdc.ir.routing import ROUTED
from qdc.streaming.account import Account
from qdc.streaming.route import Route
from qdc.streaming.work import FP32, Work, bytes_of, node_work

MASK = 1 + FP32
"""Bytes of a mask of attention for each pair of positions: as it is made, and as it is added."""


@dataclass(frozen=True)
class Cost:
    """One run of some nodes over all samples."""

    work: Work
    nbytes: int
    """Most bytes of values and decoded parameters at a time, on the device."""


class StreamForecast(Route):
    """Samples on the way of a stream; moves are charged to the pass that the stream belongs to."""

    def __init__(
        self,
        account: Account,
        owner: tuple[int, str],
        samples: int,
        length: int,
        batch: int,
        *,
        original: bool,
        segmented: bool = False,
    ) -> None:
        """Stand before the first region.

        Args:
            account: what all forecasts of the compile add up.
            owner: place and name of the pass.
            samples: rows of token ids.
            length: tokens of a row.
            batch: rows computed at once.
            original: whether it goes through the original model, where nothing is decoded.
            segmented: whether attention gets a mask.
        """
        self.segmented = segmented
        self.account, self.owner, self.original = account, owner, original
        self.samples, self.batch = samples, min(batch, samples)
        self.linear_calls = 0.0
        device = torch.device("cpu")
        super().__init__(account.program, device, self.batch, length, returns=account.returns)
        self.stopped()

    @property
    def tokens(self) -> int:
        """Tokens of all samples."""
        return self.samples * self.sizes["L"]

    def tokens_of(self, stage: Stage) -> float:
        """Tokens of all samples that a stage reads: of an expert those routed to it, on average."""
        return self.tokens * self._share(stage.value)

    def nbytes(self) -> int:
        """What is held now, the entrance of the region included."""
        places = {(self.boundary, name) for name in self.names}
        if self.returns:
            boundary, names, *_ = self._entrance
            places |= {(boundary, name) for name in names}
        sizes, held = self.dimensions(self.samples, self.sizes["L"]), self.account.held
        return sum(bytes_of(self.graph[name].type, sizes, held) for _, name in places)

    def enter(self, stage: Stage) -> None:
        """Go to a stage, forwards or back; its region's weights are held from then on."""
        self.account.load(self.graph[stage.layers[0]])
        super().enter(stage)

    def stopped(self) -> None:
        """Hold the bytes of what waits here."""
        place, _ = self.owner
        self.account.hold_states(f"{place}:{self.original}", self.nbytes())

    def move(self, steps: list[str], keep: frozenset[str]) -> None:
        """Charge what executing these nodes for all samples would take."""
        cost = self._cost(steps, keep)
        self.account.charge(*self.owner, cost.nbytes, cost.work, "device")

    def compute(self, wanted: Collection[str]) -> Cost:
        """What computing values ahead of the boundary would take; nothing moves or is charged."""
        return self._cost(self.executor.steps(wanted, self.names), wanted)

    def _share(self, name: str) -> float:
        return self.share if self.graph[name].type.shape[:1] == (ROUTED,) else 1.0

    def _cost(self, steps: list[str], wanted: Collection[str]) -> Cost:
        """Walk through the steps as the executor does, values dropped after their last reader."""
        edges, graph = self.executor.edges, self.graph
        last = {read: step for step in steps for read in edges.predecessors(step)}
        live = {name: bytes_of(graph[name].type, self.sizes, FP32) for name in self.names}
        ready = sum(FP32 * p.elements({}) for name in steps for p in graph[name].parameters)
        decoded = [name for name in steps if graph[name].parameters and not self.original]
        made = [self.account.decoding(name) for name in decoded]
        highest, work = sum(live.values()), Work()
        if self.segmented and any(graph[name].op == "attention" for name in steps):
            ready += MASK * self.batch * self.sizes["L"] ** 2
        for name in steps:
            work += node_work(graph, name, self.sizes)
            live[name] = bytes_of(graph[name].type, self.sizes, FP32)
            highest = max(highest, sum(live.values()))
            for read in edges.predecessors(name):
                if last[read] == name and read not in wanted:
                    live.pop(read, None)
            if graph[name].op == LINEAR:
                self.linear_calls += self.samples * self._share(name)
        return Cost(work.times(self.samples / self.batch), ready + max([highest, *made]))
