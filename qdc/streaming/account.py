"""What all forecasts of one compile add up: bytes, arithmetic, and how layers end up stored."""

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from qdc.format.codec import Codec
from qdc.frontend.tracer import Program
from qdc.ir.graph import Node, Region
from qdc.ir.keys import table_key
from qdc.streaming.ledger import Ledger, Place
from qdc.streaming.work import FP32, Work

if TYPE_CHECKING:
    from qdc.streaming.streamforecast import StreamForecast

LOADED, SCRATCH, TABLE, STATES = "loaded:", "scratch:", "table:", "states"
"""How the ledger names what is held, by who lets go of it."""


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
    states_limit: int | None = None
    """Bytes of calibration states that wait in host memory; the rest waits on the disk."""
    states_on_disk: int = 0
    """Most bytes of them that wait there at a time."""
    codecs: dict[str, Codec | None] = field(default_factory=dict)
    """How each lowered node will be stored; None where its pass does not say."""
    packed: set[str] = field(default_factory=set)
    slack: list[tuple[int, int]] = field(default_factory=list)
    """By how many bytes codecs whose orders are not known yet may be off, down and up."""
    work: dict[int, Work] = field(default_factory=dict)
    """By place of the pass."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Names of passes that say nothing, with the number of their units."""
    streams: "dict[tuple[int, bool], StreamForecast]" = field(default_factory=dict)
    linear_calls: float = 0
    samples: int = 0
    drawn: dict[int, tuple[int, int]] = field(default_factory=dict)
    """By place of a pass that calibrates: samples and their length."""
    scratch_bytes: int = 0
    """Most bytes that wait in a temporary file between two segments."""

    def __post_init__(self) -> None:
        """Note the region of every node."""
        self._states: dict[str, int] = {}
        regions = self.program.graph.regions
        self._regions = {name: region for region in regions for name in region.nodes}

    def charge(self, place: int, name: str, nbytes: int, work: Work, where: Place) -> None:
        """Arithmetic of the pass at a place, and the bytes that it takes for a moment."""
        self.ledger.work(f"working set of {name}", nbytes, where)
        self.work[place] = self.work.get(place, Work()) + work

    def decoding(self, name: str) -> int:
        """Bytes beside the fp32 parameters while a node's parameters are made ready."""
        node, codec = self.program.graph[name], self.codecs.get(name)
        if codec is None:
            return 0
        dense = FP32 * node.rows * node.columns
        return dense + (codec.nbytes + codec.working_bytes if name in self.packed else 0)

    def load(self, node: Node) -> None:
        """Hold the region's weights as the checkpoint has them: they are read once."""
        region = self._regions.get(node.name)
        if region is not None:
            nodes = (self.program.graph[name] for name in region.nodes)
            nbytes = sum(p.nbytes for each in nodes for p in each.parameters)
            self.ledger.hold(LOADED + region.name, "weights of a region", nbytes)

    def hold_states(self, name: str, nbytes: int) -> None:
        """Hold calibration states on the host, as far as the limit goes."""
        self._states[name] = nbytes
        total = sum(self._states.values())
        kept = total if self.states_limit is None else min(total, self.states_limit)
        self.states_on_disk = max(self.states_on_disk, total - kept)
        self.ledger.hold(STATES, "calibration states", kept)

    def drop_states(self, name: str) -> None:
        """Let go of states that ``hold_states`` has taken."""
        self._states.pop(name, None)

    def release_scratch(self, layers: tuple[str, ...]) -> None:
        """Let go of what was put for the stages that these layers read."""
        for value in {name for layer in layers for name in self.program.graph[layer].inputs}:
            self.ledger.release_all(SCRATCH + table_key(value, ""))

    def leave(self, region: Region) -> None:
        """Move all streams past a region and forget its weights."""
        for stream in list(self.streams.values()):
            stream.leave(region)
        self.ledger.release(LOADED + region.name)

    def finish(self, region: Region) -> None:
        """Let go of what the artifact has."""
        for name in region.nodes:
            self.ledger.release(TABLE + name)

    def end_segment(self) -> None:
        """All streams end, and with them what they hold."""
        self.linear_calls += sum(stream.linear_calls for stream in self.streams.values())
        self.streams.clear()
        self._states.clear()
        self.ledger.release(STATES)
        self.ledger.release_all(LOADED)

    def spill(self) -> None:
        """Move what the table holds to a file."""
        self.scratch_bytes += self.ledger.release_all(TABLE)
