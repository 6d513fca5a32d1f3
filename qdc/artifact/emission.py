"""What a backend emits from: the compiled graph, its tensors, the checkpoint, and the writer."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from qdc.artifact.writer import ArtifactWriter
from qdc.codec import Lowered
from qdc.frontend.checkpoint import Checkpoint
from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph
from qdc.ir.tensors import TensorTable


@dataclass(frozen=True)
class Emission:
    """One compile, as a backend sees it."""

    graph: LayerGraph
    tensors: TensorTable
    checkpoint: Checkpoint
    writer: ArtifactWriter
    facts: dict[str, object]
    """What goes into the configuration besides the layers: pipeline, digests, versions."""

    def packed(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Stored tensors of the quantized layers among these nodes, by full name."""
        found: dict[str, Tensor] = {}
        for name in names:
            note = self.graph.get(name, Packed)
            if note is not None:
                for suffix, ref in zip(note.suffixes, note.tensors, strict=True):
                    found[f"{self.graph[name].path}.{suffix}"] = self.tensors.get(ref)
        return found

    def kept(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of these nodes that stay as the checkpoint has them."""
        found: dict[str, Tensor] = {}
        for name in names:
            replaced = self.graph.get(name, Packed) is not None
            for parameter in self.graph[name].parameters:
                if not (replaced and parameter.role == "weight"):
                    found[parameter.name] = self.checkpoint.tensor(parameter.name)
        return found

    def layers(self) -> dict[str, dict[str, object]]:
        """For each quantized layer, by full path: its codec and the codec's fields."""
        found: dict[str, dict[str, object]] = {}
        for node in self.graph.layers():
            codec = self.graph.require(node.name, Lowered).codec
            found[node.path] = {"codec": codec.name, **codec.model_dump(mode="json")}
        return found
