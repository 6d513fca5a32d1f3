"""What a running pipeline holds: one region's weights, the tensor table, the streams."""

import functools
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qdc.checkpoint.folder import Checkpoint
from qdc.distributed.forms import Forms
from qdc.distributed.world import World
from qdc.errors import InvalidCalibration, InvalidGraph
from qdc.format.codec import Codec, Lowered
from qdc.frontend.tracer import Program
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Packed
from qdc.ir.calibration_use import SampledStates, TokenCertainty
from qdc.ir.graph import Node, Region, Stage
from qdc.ir.tensors import TensorTable
from qdc.ir.text_use import TextUse
from qdc.ir.tuned import Tuned
from qdc.pipeline.cutting import cut
from qdc.streaming.batches import Batches
from qdc.streaming.calibration import Calibration
from qdc.streaming.inputs import LayerInputs
from qdc.streaming.parameters import NodeWeights
from qdc.streaming.remark import Remark
from qdc.streaming.states import StateStore
from qdc.streaming.stream import Stream
from qdc.streaming.trail import Trail

MakeBatches = Callable[[], Sequence[Tensor]]
Key = tuple[int, bool]
"""A stream: the place of its pass in the plan, and whether it goes through the original model."""


@dataclass
class Workspace:
    """The mutable state behind all units of one compile."""

    program: Program
    checkpoint: Checkpoint
    device: torch.device
    calibration: Calibration | None
    tensors: TensorTable = field(default_factory=TensorTable)
    remarks: list[Remark] = field(default_factory=list)
    """Of the pass that runs now; an instrument takes them over."""
    linear_calls: float = 0
    """Linears executed for calibration, counted once for each sample."""
    returns: bool = False
    """Whether streams must be able to go back inside a region; ``Plan.returns`` knows."""
    states: StateStore = field(default_factory=StateStore)
    """Where the values of all streams wait between two stages."""
    samples: int = 0
    """Samples of the largest calibration."""
    text: list[TextUse] = field(default_factory=list)
    """What samples were made of, each once."""
    sampled: list[SampledStates] = field(default_factory=list)
    """What states were taken of trajectories, each once."""
    certainty: list[TokenCertainty] = field(default_factory=list)
    """What confidence tokens were weighed by, each once."""
    trails: dict[Key, Trail] = field(default_factory=dict)
    """Ways that streams follow when they are made, to where an interrupted compile had them."""
    world: World = field(default_factory=World)
    """The processes that share the compile."""
    tags: Mapping[str, type[Annotation]] = field(default_factory=dict)
    """Every annotation that a pass may write, by tag: they come from other processes too."""
    memory: int | None = None
    """Bytes that the statistics of a wave may take; None is no limit."""
    owners: dict[str, int] = field(default_factory=dict)
    """The rank that works on each node, as far as somebody has asked."""
    _loaded: dict[str, Tensor] = field(default_factory=dict)
    _streams: dict[Key, Stream] = field(default_factory=dict)

    @functools.cached_property
    def inputs(self) -> LayerInputs:
        """What layers make of the values that they read."""
        return LayerInputs(self.program.graph, self.tensors, self.device)

    @functools.cached_property
    def forms(self) -> Forms:
        """The forms of lowered layers, which of several processes those get that read them."""
        return Forms(self.world, self.program.graph, self.tensors)

    def parameter(self, node: Node, role: str = "weight") -> Tensor:
        """The checkpoint's own tensor, in the coordinates of a rotated layer, as ``original``."""
        tensor = self.original(node, role)
        return self.inputs.weight(node, tensor) if role == "weight" else tensor

    def original(self, node: Node, role: str = "weight") -> Tensor:
        """The checkpoint's own tensor in fp32 on the device; a region's are read once and held.

        Weights are computed with in fp32 whatever the checkpoint's dtype, so that what is fitted
        does not depend on it.
        """
        name = next(p.name for p in node.parameters if p.role == role)
        tensor = self._loaded.get(name)
        if tensor is None:
            tensor = self.checkpoint.tensor(name)
            if node.name in self.program.graph.inside:
                self._loaded[name] = tensor
        return tensor.to(self.device, torch.float32)

    def current(self, name: str, role: str = "weight") -> Tensor:
        """The tensor as it stands: dequantized once its layer was lowered, tuned once it was."""
        graph = self.program.graph
        node, tuned = graph[name], graph.get(name, Tuned)
        replaced = None if tuned is None else tuned.find(role)
        if replaced is not None:
            return self.tensors.get(replaced).to(self.device, torch.float32)
        owner = graph.owner(name, role)
        packed, lowered = graph.get(owner, Packed), graph.get(owner, Lowered)
        if role != "weight" or lowered is None:
            return self.parameter(node, role)
        codec: Codec = lowered.codec
        if packed is None:
            return codec.dense(lowered.working(self.tensors)).to(self.device)
        stored = {
            s: self.tensors.get(ref) for s, ref in zip(packed.suffixes, packed.tensors, strict=True)
        }
        return codec.dense(codec.unpack(stored)).to(self.device)

    def parameters(self, name: str) -> dict[str, Tensor]:
        """All that a node computes with, by role, as it stands: added biases are among them."""
        graph = self.program.graph
        tuned = graph.get(name, Tuned)
        roles = [p.role for p in graph[name].parameters]
        roles += () if tuned is None else tuned.added(graph[name])
        return {role: self.current(name, role) for role in roles}

    def originals(self, name: str) -> dict[str, Tensor]:
        """All that a node computes with in the original model, by role."""
        node = self.program.graph[name]
        return {p.role: self.original(node, p.role) for p in node.parameters}

    @functools.cached_property
    def outside(self) -> tuple[str, ...]:
        """Names of the nodes outside of the regions."""
        return tuple(node.name for node in self.program.graph.outside())

    def waves(self, region: Region) -> tuple[tuple[Stage, ...], ...]:
        """The region's stages as they are worked on together."""
        graph = self.program.graph
        waves = graph.waves[region.name].stages
        return tuple(part for wave in waves for part in cut(graph, wave, self.memory))

    def stream(self, key: Key, make: MakeBatches, *, split: bool = False) -> Stream:
        """The stream of this key, started from its samples at the first call.

        Args:
            key: a pass may have one stream of each kind.
            make: gives the batches, ``i64[b, length]`` token ids.
            split: whether this process moves its part of the batches alone; the caller then adds
                up over all processes.

        Raises:
            InvalidCalibration: they are to be split, and processes have made different ones; or the
                pass's other stream has segments and they have none.
        """
        if key not in self._streams:
            batches = make()
            self.samples = max(self.samples, sum(map(len, batches)))
            if split:
                self._same(batches)
            self._check_segments(key, batches)
            part = self.world.part(len(batches)) if split else slice(None)
            stream = self._made(
                batches,
                self.originals if key[1] else self.parameters,
                returns=self.returns,
                part=part,
                inputs=self.inputs,
                original=key[1],
                ready=None if key[1] else self.forms.bring,
            )
            self._streams[key] = stream
            if key in self.trails:
                stream.follow(self.trails.pop(key), self._loaded.clear)
        return self._streams[key]

    def loose_stream(
        self, batches: Sequence[Tensor], weights: NodeWeights, *, as_stored: bool = False
    ) -> Stream:
        """A stream that the caller moves: it is not left with a region, and not kept for later.

        Args:
            batches: ``i64[b, length]`` token ids.
            weights: what its nodes are computed with.
            as_stored: whether linears rotate and quantize what they read, as passes have said; the
                weights are then in those coordinates.
        """
        return self._made(batches, weights, inputs=self.inputs if as_stored else None)

    def _made(
        self,
        batches: Sequence[Tensor],
        weights: NodeWeights,
        *,
        returns: bool = False,
        part: slice = slice(None),
        inputs: LayerInputs | None = None,
        original: bool = False,
        ready: Callable[[Sequence[str]], None] | None = None,
    ) -> Stream:

        def shrunk(name: str, samples: int) -> None:
            details = {"reason": f"{self.device} ran out of memory", "batch": samples}
            self.remarks.append(Remark("note", "calibration", name, details))

        device, states = self.device, self.states
        stream = Stream(
            self.program,
            batches,
            weights,
            device,
            returns=returns,
            states=states,
            part=part,
            decoded=self.memory,
            inputs=inputs,
            original=original,
            ready=ready,
        )
        stream.executor.shrunk = shrunk
        return stream

    def _check_segments(self, key: Key, batches: Sequence[Tensor]) -> None:
        place, original = key
        other = self._streams.get((place, not original))
        if other is None or (other.segments is None) == (Batches.of(batches).segments is None):
            return
        raise InvalidCalibration(
            "one stream of a pass knows padding or documents, its other stream does not",
            help="make the second of the first: unit.reference(stream.samples)",
        )

    def _same(self, batches: Sequence[Tensor]) -> None:
        given = Batches.of(batches)
        whole = hashlib.sha256(repr([batch.shape for batch in given]).encode())
        whole.update(torch.cat((*given.tokens, *(given.segments or ()))).numpy().data)
        if given.weights is not None:
            whole.update(torch.cat(given.weights).numpy().data)
        if len(set(self.world.agree(whole.digest()))) > 1:
            raise InvalidCalibration(
                "the processes of the compile have drawn different samples",
                help="give all of them the same text, tokenizer and versions",
            )

    def streams(self) -> Iterator[tuple[Key, Stream]]:
        """Every stream with its key: those through the rewritten model first."""
        yield from sorted(self._streams.items(), key=lambda item: (item[0][1], item[0][0]))

    def rewritten(self, name: str) -> None:
        """Send streams that have gone past this node of the region back to where they entered it.

        Raises ``InvalidGraph`` if they cannot go back.
        """
        for (_, original), stream in self._streams.items():
            if original or not stream.passed(name):
                continue
            if not stream.returns:
                raise InvalidGraph(
                    "a calibration stream has gone past the layer, and it is rewritten",
                    where=[f"%{name}"],
                    help="declare in the pass's provides what it rewrites",
                )
            stream.rewind()

    def leave(self, region: Region) -> None:
        """Move all streams past a region and forget its weights."""
        for _, stream in self.streams():
            stream.leave(region)
        self._loaded.clear()

    def end_segment(self) -> None:
        """Drop the streams."""
        self.linear_calls += sum(stream.linear_calls for _, stream in self.streams())
        self._streams.clear()
        self._loaded.clear()

    def release(self, names: Sequence[str], *, scratch: bool) -> None:
        """Release tensors of these nodes: all, or the scratch alone, as moments and factors."""
        for name in names:
            for note in self.program.graph.annotations(name).values():
                if note.scratch or not scratch:
                    for ref in note.refs():
                        self.tensors.release(ref.name)
