"""What all forecasts of one compile add up: bytes, arithmetic, and how layers end up stored."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from qdc.distributed.ownership import owners
from qdc.format.codec import Codec
from qdc.frontend.tracer import Program
from qdc.ir.graph import Node
from qdc.pipeline.cutting import cut
from qdc.streaming.handover import Handover
from qdc.streaming.ledger import Ledger
from qdc.streaming.work import Work

if TYPE_CHECKING:
    from qdc.streaming.streamforecast import StreamForecast

LOADED, SCRATCH, TABLE, STATES = "loaded:", "scratch:", "table:", "states:"
"""How the ledger names what is held, by who lets go of it."""
WAITING = "calibration states"
"""The kind of what streams hold."""


@dataclass
class Account:
    """The state behind all forecasts of one compile, in place of a workspace."""

    program: Program
    """Annotations on its graph have the shapes to come, and zeros for what would be measured."""
    ledger: Ledger
    held: int
    """Bytes of a calibration state's float between stages."""
    returns: bool
    """Whether streams hold the entrance of a region."""
    memory: int | None = None
    """Bytes that the statistics of a wave may take; None is no limit."""
    ranks: int = 1
    """Processes that share the compile; what is held is what the first of them holds."""
    codecs: dict[str, Codec | None] = field(default_factory=dict)
    """How each lowered node will be stored; None where its pass does not say."""
    packed: set[str] = field(default_factory=set)
    slack: list[tuple[int, int]] = field(default_factory=list)
    """By how many bytes codecs whose orders are not known yet may be off, down and up."""
    work: defaultdict[int, Work] = field(default_factory=lambda: defaultdict(Work))
    """By place of the pass."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Names of passes that say nothing, with the number of their units."""
    streams: "dict[tuple[int, bool], StreamForecast]" = field(default_factory=dict)
    drawn: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By place of a pass that calibrates: samples and their length."""
    scratch_bytes: int = 0
    """Most bytes that wait in a temporary file between two segments."""

    def share(self, batches: int) -> float:
        """The share of so many batches that the first process moves."""
        return -(-batches // self.ranks) / max(1, batches)

    def owns(self, node: Node) -> bool:
        """Whether the first process owns a layer."""
        return self.ranks == 1 or self._owners.get(node.name, 0) == 0

    @cached_property
    def handover(self) -> Handover:
        """What processes send each other of lowered layers."""
        return Handover(self.ranks)

    def made(self, node: Node, *, everywhere: bool) -> None:
        """A node's weight has a new form, which its owner has or, at once, every process."""
        if self.ranks > 1:
            self.handover.made(node.name, self._owners.get(node.name, 0))
            self.read(self.ranks if everywhere else 0, [node.name])

    def read(self, ranks: int, names: Iterable[str]) -> None:
        """So many processes, the first ones, read the weights of these nodes as they stand now."""
        if self.ranks == 1:
            return
        graph = self.program.graph
        for name in {graph.owner(name) for name in names}:
            codec = self.codecs.get(name)
            if codec is not None:
                nbytes = codec.nbytes if name in self.packed else codec.working_bytes
                self.handover.read(name, nbytes, ranks)

    @cached_property
    def _owners(self) -> dict[str, int]:
        graph = self.program.graph
        found: dict[str, int] = {}
        for region in graph.regions:
            stages = graph.waves[region.name].stages
            waves = [part for wave in stages for part in cut(graph, wave, self.memory)]
            layers = [[list(graph.layers([stage])) for stage in wave] for wave in waves]
            found |= owners(layers, self.ranks)
        found |= owners([[list(graph.vocabulary())]], self.ranks)
        return found

    def load(self, node: Node) -> None:
        """Hold the region's weights as the checkpoint has them: they are read once."""
        region = self.program.graph.inside.get(node.name)
        if region is not None and LOADED + region.name not in self.ledger:
            nodes = (self.program.graph[name] for name in region.nodes)
            nbytes = sum(p.nbytes for each in nodes for p in each.parameters)
            self.ledger.hold(LOADED + region.name, "weights of a region", nbytes)
