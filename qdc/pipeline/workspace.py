"""What a running pipeline holds: one region's weights, the tensor table, the streams."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from qdc.calibration.text import TextSource
from qdc.codec import Codec, Lowered
from qdc.frontend.checkpoint import Checkpoint
from qdc.frontend.tracer import Program
from qdc.ir.annotations import Packed
from qdc.ir.graph import Node, Region
from qdc.ir.tensors import TensorTable
from qdc.pipeline.stream import Stream

MakeBatches = Callable[[], list[Tensor]]


@dataclass(frozen=True)
class Calibration:
    """The text that samples are drawn from, and how it becomes token ids."""

    source: TextSource
    encode: Callable[[str], list[int]]


@dataclass(frozen=True)
class Remark:
    """What a pass has to say about one layer."""

    kind: str
    """``passed``, ``missed`` or ``note``."""
    step: str
    layer: str
    details: dict[str, object]

    def __str__(self) -> str:
        """``passed daq-lower %h0.q error=1.3e-02``."""
        known = {key: value for key, value in self.details.items() if value is not None}
        details = " ".join(f"{key}={_short(value)}" for key, value in known.items())
        return f"{self.kind} {self.step} %{self.layer} {details}".rstrip()


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
    linear_calls: int = 0
    """Linears executed for calibration, counted once for each sample."""
    samples: int = 0
    """Samples of the largest calibration."""
    _loaded: dict[str, Tensor] = field(default_factory=dict)
    _streams: dict[int, Stream] = field(default_factory=dict)

    def parameter(self, node: Node, role: str = "weight") -> Tensor:
        """The checkpoint's own tensor in fp32 on the device; a region's are read once.

        Weights are computed with in fp32 whatever the checkpoint's dtype, so that what is fitted
        does not depend on it.
        """
        name = next(p.name for p in node.parameters if p.role == role)
        if name not in self._loaded:
            self._loaded[name] = self.checkpoint.tensor(name)
        return self._loaded[name].to(self.device, torch.float32)

    def current(self, name: str, role: str = "weight") -> Tensor:
        """The tensor as it stands: dequantized once its layer was lowered."""
        graph = self.program.graph
        node = graph[name]
        packed, lowered = graph.get(name, Packed), graph.get(name, Lowered)
        if role != "weight" or lowered is None:
            return self.parameter(node, role)
        codec: Codec = lowered.codec
        if packed is None:
            return codec.dense(lowered.working(self.tensors)).to(self.device)
        stored = {
            s: self.tensors.get(ref) for s, ref in zip(packed.suffixes, packed.tensors, strict=True)
        }
        return codec.dense(codec.unpack(stored)).to(self.device)

    def stream(self, place: int, make: MakeBatches) -> Stream:
        """The stream of the pass at this place, started from its samples at the first call."""
        if place not in self._streams:
            batches = make()
            self.samples = max(self.samples, sum(len(batch) for batch in batches))
            self._streams[place] = Stream(self.program, batches, self.current, self.device)
        return self._streams[place]

    def leave(self, region: Region) -> None:
        """Move all streams past a region and forget its weights."""
        for stream in self._streams.values():
            stream.leave(region)
        self._loaded.clear()

    def release(self, region: Region) -> None:
        """Release every tensor of a region that has been emitted."""
        for name in region.nodes:
            for note in self.program.graph.annotations(name).values():
                for ref in note.refs():
                    self.tensors.release(ref.name)

    def end_segment(self, spill: Path | None) -> None:
        """Drop the streams; with a folder, move the tensors that remain out of memory."""
        self.linear_calls += sum(stream.linear_calls for stream in self._streams.values())
        self._streams.clear()
        self._loaded.clear()
        if spill is not None:
            self.tensors.spill(spill)

    def release_scratch(self, names: tuple[str, ...]) -> None:
        """Release the scratch tensors of these layers: moments, factors."""
        for name in names:
            for note in self.program.graph.annotations(name).values():
                if note.scratch:
                    for ref in note.refs():
                        self.tensors.release(ref.name)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
