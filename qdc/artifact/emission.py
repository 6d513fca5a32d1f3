"""What a backend emits from: the compiled graph, its tensors, the checkpoint, and the writer."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

from qdc.artifact.writer import ArtifactWriter
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidGraph
from qdc.format.codec import Lowered
from qdc.ir.activations import InputCodes, OfActivations, of_activations
from qdc.ir.annotations import Kept, Packed
from qdc.ir.graph import LayerGraph
from qdc.ir.keys import file_key
from qdc.ir.tensors import TensorTable
from qdc.ir.tuned import Tuned


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
                codes = self.graph.get(name, InputCodes)
                static = () if codes is None else zip(codes.suffixes, codes.tensors, strict=True)
                for suffix, ref in static:
                    found[file_key(self.graph[name].path, suffix)] = self.tensors.get(ref)
        return found

    def kept(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Tensors of these nodes that are stored plainly: the checkpoint's own, and tuned ones."""
        found: dict[str, Tensor] = {}
        for name in names:
            node, tuned = self.graph[name], self.graph.get(name, Tuned)
            owner = self.graph.owner(name)
            replaced = {"weight"} if self.graph.get(owner, Packed) is not None else set()
            if tuned is not None:
                for role, ref in zip(tuned.roles, tuned.tensors, strict=True):
                    found[file_key(node.path, role)] = self.tensors.get(ref)
                    replaced.add(role)
            for parameter in node.parameters:
                if parameter.role not in replaced:
                    found[parameter.name] = self.checkpoint.tensor(parameter.name)
        return found

    def added_biases(self) -> list[str]:
        """Full paths of the linears that have a bias now and had none."""
        tuned = ((node, self.graph.get(node.name, Tuned)) for node in self.graph.linears())
        return [node.path for node, note in tuned if note is not None and note.added(node)]

    def activations(self) -> dict[str, dict[str, object]]:
        """What quantized layers do with what they read, by full path, as the configuration says it.

        Raises:
            InvalidGraph: layers are rotated and kept.
        """
        kept = [node.name for node in self.graph.linears() if _is_both(self.graph, node.name)]
        if kept:
            raise InvalidGraph(
                "layers do something with activations, and are kept",
                where=[f"%{name}" for name in kept],
                help="decide which layers are kept before rotate and quantize-activations",
            )
        return activations_of(self.graph)

    def layers(self) -> dict[str, dict[str, object]]:
        """For each quantized layer, by full path: its codec and the codec's fields.

        Embedding and output head are among them if a pass has quantized them.

        Raises:
            InvalidGraph: some layers are packed and kept, or neither.
        """
        layers = {node.name: node.path for node in self.graph.layers()}
        for node in self.graph.vocabulary():
            if self.graph.get(node.name, Lowered) and not self.graph.get(node.name, Kept):
                layers[node.name] = node.path
        packed = {n.name for n in self.graph if self.graph.get(n.name, Packed) is not None}
        if packed != set(layers):
            raise InvalidGraph(
                "layers are packed and kept, or neither",
                where=[f"%{name}" for name in sorted(packed ^ set(layers))],
                help="decide which layers are kept before the first pass that lowers",
            )
        found: dict[str, dict[str, object]] = {}
        for name, path in layers.items():
            codec = self.graph.require(name, Lowered).codec
            found[path] = {"codec": codec.name, **codec.model_dump(mode="json")}
        return found


def activations_of(graph: LayerGraph) -> dict[str, dict[str, object]]:
    """What layers do with what they read, by full path; empty if none does anything."""
    found: dict[str, dict[str, object]] = {}
    for node in graph.layers():
        does = of_activations(graph, node.name)
        if does is not None:
            found[node.path] = does.model_dump(mode="json", exclude_none=True)
    return found


def tells_masked(graph: LayerGraph) -> bool:
    """Whether some layer tells masked tokens from visible ones."""
    found = (of_activations(graph, node.name) for node in graph.layers())
    return any(each.by_class for each in found if each is not None)


def _is_both(graph: LayerGraph, name: str) -> bool:
    notes = graph.annotations(name).values()
    does = any(isinstance(note, OfActivations) for note in notes)
    return does and graph.get(name, Kept) is not None
