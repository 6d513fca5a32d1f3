"""What several processes gain on a compile, and what they send each other.

By the rules of the compile itself: samples are split by batches, layers by ``ownership`` within
each wave. Sums are reduced to owners, the forms of lowered layers go to those that read them
(docs/scaling.md).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from qdc.distributed.ownership import cost, owners
from qdc.ir.annotations import Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import LayerGraph, Node, Stage
from qdc.ir.routing import rows_of
from qdc.passkit.calibration import CalibrationOptions
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Group, Plan
from qdc.pipeline.traversal import Traversal
from qdc.streaming.account import Account

LINK = 40e9
"""Bytes a second between two processes: assumed, as of a fast network between machines."""
TREE = 2
"""A pipelined reduce or broadcast moves everything in and out of a process."""
EXACT, NARROW = 8, 4
"""Bytes of a number of a sum on its way: of experts in fp32, of all others in fp64."""


@dataclass(frozen=True)
class Ranks:
    """So many processes on one compile."""

    count: int
    plan: Plan
    account: Account

    @property
    def graph(self) -> LayerGraph:
        """The graph, with what passes foretell on it."""
        return self.account.program.graph

    def gain(self, step: Pass) -> float:
        """How many times faster the slowest process is done with its part than one with all."""
        if self.count == 1 or step.divided == "nothing":
            return 1
        if step.divided == "samples":
            if not isinstance(step, CalibrationOptions):
                return 1  # nobody knows in how many batches it runs
            batches = -(-step.samples * (step.timesteps or 1) // step.batch)
            return batches / -(-batches // self.count)
        loads = self._by_wave if self._in_group(step) else self._by_region
        longest = sum(max(load) for load in loads)
        return sum(map(sum, loads)) / longest if longest else 1

    def sent(self) -> tuple[int, float]:
        """Bytes that are delivered in all, and the seconds that sending takes at ``LINK``."""
        if self.count == 1:
            return 0, 0.0
        delivered, once = 0.0, 0.0
        for step in self.plan.passes():
            for nbytes, handed in self._messages(step):
                delivered += nbytes * (self.count - 1 + handed)
                once += nbytes * (TREE + handed)
        forms = self.account.handover
        once += forms.handed + TREE * forms.spread
        return int(delivered) + forms.delivered, once / LINK

    def _messages(self, step: Pass) -> Iterator[tuple[float, int]]:
        """Bytes of each sum that a pass sends, and to how many further owners they are handed."""
        if step.divided == "samples" and Moment in step.provides:
            crossed = CrossMoment in step.provides
            for stage, nodes in self._stages():
                squares = nodes[0].columns ** 2 * (2 if crossed else 1)
                routed = rows_of(self.graph, stage.value) is not None
                found = {self._owners[node.name] for node in nodes}
                yield squares * (NARROW if routed else EXACT), len(found) - 1
                note = self.graph.get(nodes[0].name, CrossMoment)
                if crossed and note is not None and note.residual is not None:
                    yield EXACT * nodes[0].rows * nodes[0].columns, 0

    def _stages(self) -> Iterator[tuple[Stage, list[Node]]]:
        for region in self.graph.regions:
            for stage in region.stages:
                nodes = list(self.graph.layers([stage]))
                if nodes:
                    yield stage, nodes

    @cached_property
    def _waves(self) -> list[list[list[list[Node]]]]:
        """Layers by region, wave and stage."""
        traversal = Traversal(self.plan, self.graph, self.account.memory)
        return [
            [[list(self.graph.layers([s])) for s in wave] for wave in traversal.waves(region)]
            for region in self.graph.regions
        ]

    @cached_property
    def _owners(self) -> dict[str, int]:
        return {
            name: rank for waves in self._waves for name, rank in owners(waves, self.count).items()
        }

    @cached_property
    def _by_wave(self) -> list[list[float]]:
        """For each wave what each process has to do."""
        return [self._loads(wave) for waves in self._waves for wave in waves]

    @cached_property
    def _by_region(self) -> list[list[float]]:
        """The same for whole regions."""
        return [self._loads([nodes for wave in waves for nodes in wave]) for waves in self._waves]

    def _loads(self, stages: list[list[Node]]) -> list[float]:
        loads = [0.0] * self.count
        for node in (node for nodes in stages for node in nodes):
            loads[self._owners[node.name]] += cost(node)
        return loads

    def _in_group(self, step: Pass) -> bool:
        return any(
            isinstance(item, Group) and any(inner is step for inner in item.passes)
            for item in self.plan.items
        )
