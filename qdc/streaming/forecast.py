"""The view that a pass gets when it is asked what it would do: the counterpart of a unit.

``Pass.forecast`` walks through the layers as ``run`` would and says, instead of doing it, what is
held, what is in memory for a moment, what is computed, and how layers end up stored. Annotations
are passed on to later passes with the right shapes and zeros for what would be measured.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from qdc.format.codec import Codec
from qdc.ir.annotations import Annotation
from qdc.ir.graph import LayerGraph, ModelFacts, Node, Region, Stage
from qdc.ir.types import TensorRef
from qdc.pipeline.passbase import Pass
from qdc.streaming.ledger import Place
from qdc.streaming.passage import FP32, Passage, Step
from qdc.streaming.prospect import SCRATCH, TABLE, Prospect
from qdc.streaming.work import Work

A = TypeVar("A", bound=Annotation)
NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Forecast:
    """What one call of ``Pass.forecast`` is about."""

    step: Pass
    place: int
    prospect: Prospect
    stages: tuple[Stage, ...]
    region: Region | None
    whole_region: bool

    @property
    def graph(self) -> LayerGraph:
        """The whole graph."""
        return self.prospect.program.graph

    @property
    def model(self) -> ModelFacts:
        """Facts of the model."""
        return self.graph.model

    @property
    def started(self) -> bool:
        """Whether the pass has a stream already, and so has drawn its samples."""
        return any(place == self.place for place, _ in self.prospect.streams)

    def layers(self) -> tuple[Node, ...]:
        """The linears of this unit that are to be quantized."""
        return tuple(node for _, nodes in self.layers_by_stage() for node in nodes)

    def layers_by_stage(self) -> Iterator[tuple[Stage, tuple[Node, ...]]]:
        """Each stage with those of its linears that are to be quantized."""
        wanted = self.prospect.quantized
        for stage in self.stages:
            nodes = tuple(self.graph[name] for name in stage.layers if name in wanted)
            if nodes:
                yield stage, nodes

    def expect(self, node: Node, note: Annotation) -> None:
        """Say that the node will carry such an annotation."""
        self.prospect.notes[node.name, note.fills] = note

    def expected(self, node: Node, kind: type[A]) -> A | None:
        """What an earlier pass said the node will carry."""
        return self.prospect.expected(node.name, kind)

    def keep(self, node: Node) -> None:
        """Say that the layer stays as it is: passes from now on leave it out."""
        self.prospect.quantized.discard(node.name)

    def unknown(self) -> None:
        """Say that nobody knows what this pass does to memory and time."""
        self.prospect.unknown[self.step.name] += 1

    def stored_unknown(self, node: Node) -> None:
        """Say that nobody knows how the layer will be stored."""
        self.prospect.codecs[node.name] = None

    def codec(self, node: Node) -> Codec | None:
        """How an earlier pass said the node will be stored."""
        return self.prospect.codecs.get(node.name)

    def lower(self, node: Node, codec: Codec) -> None:
        """The layer will have this codec; its working tensors are held until they are packed."""
        self.prospect.codecs[node.name] = codec
        self.prospect.packed.discard(node.name)
        name = TABLE + node.name
        self.prospect.ledger.hold(name, "lowered layers", codec.working_bytes, "device")

    def pack(self, node: Node) -> None:
        """The stored form takes the place of the working tensors, on the host."""
        codec = self.prospect.codecs.get(node.name)
        if codec is None:
            return
        self.prospect.packed.add(node.name)
        self.prospect.ledger.hold(TABLE + node.name, "packed layers", codec.nbytes)

    def orders_vary(self, fewer: int, more: int) -> None:
        """The layers' codecs are a guess: they may store so many bytes less, or more."""
        self.prospect.slack.append((fewer, more))

    def put(self, stage: Stage, what: str, *shape: int) -> TensorRef:
        """Hold an f32 tensor of this shape until the stage's scratch tensors are released.

        Returns:
            A reference for annotations; its digest is a placeholder.
        """
        name = f"{SCRATCH}{stage.value}:{what}"
        ref = TensorRef(name=name, dtype="f32", shape=shape, digest=NO_DIGEST)
        self.prospect.ledger.hold(name, "statistics of a stage", ref.nbytes, "device")
        return ref

    def holds(self, ref: TensorRef) -> bool:
        """Whether a tensor that ``put`` gave is still held."""
        return ref.name in self.prospect.ledger

    def weight(self, node: Node) -> int:
        """Bytes of the original weight in fp32; its region's weights are held from now on."""
        self.prospect.load(node)
        return FP32 * node.rows * node.columns

    def work(self, nbytes: int, work: Work | None = None, *, host: bool = False) -> None:
        """Arithmetic, and the bytes that it takes for a moment beside all that is held."""
        place = self.place
        self.prospect.ledger.work(f"working set of {self.step.name}", nbytes, _where(host))
        self.prospect.work[place] = self.prospect.work.get(place, Work()) + (work or Work())

    def stream(self, samples: int, length: int, batch: int, *, original: bool = False) -> Passage:
        """The calibration stream of this pass, started at the first call."""
        key, prospect = (self.place, original), self.prospect
        if key not in prospect.streams:
            prospect.samples = max(prospect.samples, samples)
            prospect.drawn[self.place] = (samples, length)
            prospect.streams[key] = self.passage(samples, length, batch, original=original)
            self._states(prospect.streams[key])
        return prospect.streams[key]

    def passage(
        self, samples: int, length: int, batch: int, *, original: bool, returns: bool | None = None
    ) -> Passage:
        """A stream of its own, which the caller accounts for."""
        prospect = self.prospect
        return Passage(
            prospect.program,
            samples=samples,
            length=length,
            batch=batch,
            held=prospect.held,
            returns=prospect.returns if returns is None else returns,
            decoding=(lambda name: 0) if original else prospect.decoding,
        )

    def start(self, stream: Passage, region: Region) -> None:
        """Send a stream to the start of a region."""
        self._moved(stream, stream.start(region))

    def enter(self, stream: Passage, stage: Stage) -> None:
        """Send a stream to a stage."""
        self.prospect.load(self.graph[stage.layers[0]])
        self._moved(stream, stream.enter(stage))

    def leave(self, stream: Passage, region: Region) -> None:
        """Send a stream past a region."""
        self._moved(stream, stream.leave(region))

    def keep_states(self, what: str, numbers: int) -> None:
        """Hold so many numbers on the host, as calibration states are held."""
        self.prospect.hold_states(f"{self.place}:{what}", numbers * self.prospect.held)

    def drop_states(self, what: str) -> None:
        """Let go of them before the segment ends."""
        self.prospect.drop_states(f"{self.place}:{what}")

    def _moved(self, stream: Passage, step: Step | None) -> None:
        if step is not None:
            self.work(step.nbytes, step.work)
        self._states(stream)

    def _states(self, stream: Passage) -> None:
        for (place, original), known in self.prospect.streams.items():
            if known is stream:
                self.prospect.hold_states(f"{place}:{original}", stream.nbytes())


def _where(host: bool) -> Place:
    return "host" if host else "device"
