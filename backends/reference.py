"""The portable format: a folder that ``safetensors`` and ``json`` alone can read.

One shard a region and one for the rest; ``config.json`` names each layer's codec;
``docs/format.md`` gives every tensor, shape, bit order and formula.
"""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import torch

from qdc.artifact.config import GUARD, QUANTIZATION, written_version
from qdc.artifact.emission import Emission, activations_of, tells_masked
from qdc.artifact.writer import CONFIG, DUMP, json_bytes
from qdc.checkpoint.compiled import METHOD
from qdc.ir.dump import to_bytes
from qdc.ir.graph import LINEAR, LayerGraph, Region
from qdc.ir.routing import ROUTER
from qdc.pipeline.backendbase import Backend, Runtime
from qdc.pipeline.foreseen import FileSize, Foreseen
from qdc.pipeline.running import Resident, Running
from qdc.runtime.dense import DenseRuntime, resident


class Reference(Backend):
    """Write the portable folder: bit planes, scales, untouched tensors, configuration, IR dump."""

    name: ClassVar[str] = "reference"

    def runtime(self, device: torch.device, dtype: torch.dtype | None) -> Runtime:
        """Dense weights, in fp32 if not told otherwise."""
        return DenseRuntime(device, torch.float32 if dtype is None else dtype)

    def resident(self, running: Running) -> Resident | None:
        """As the dense runtime says; who extends this one by another runtime speaks for itself."""
        return resident(running) if type(self).runtime is Reference.runtime else None

    def layout(self, graph: LayerGraph) -> dict[str, tuple[str, ...]]:
        """A file for each region, and one for what lies outside."""
        parts = [*(region.nodes for region in graph.regions), _outside(graph)]
        return {_shard_name(graph, number): nodes for number, nodes in enumerate(parts)}

    def emit_region(self, emission: Emission, region: Region) -> None:
        """Write the region's shard."""
        number = emission.graph.regions.index(region)
        tensors = {**emission.packed(region.nodes), **emission.kept(region.nodes)}
        emission.writer.shard(_shard_name(emission.graph, number), tensors)

    def finish(self, emission: Emission) -> None:
        """Write the last shard, index, configuration, tokenizer and dump."""
        graph, writer = emission.graph, emission.writer
        rest = _outside(graph)
        tensors = {**emission.packed(rest), **emission.kept(rest), **emission.checkpoint.extra}
        writer.shard(_shard_name(graph, len(graph.regions)), tensors)
        writer.index()
        layers, beside = emission.layers(), Beside(emission.added_biases(), emission.activations())
        checkpoint, facts = emission.checkpoint, emission.facts
        writer.json(CONFIG, _configuration(graph, checkpoint.config, facts, layers, beside))
        for name, data in emission.checkpoint.tokenizer_bytes():
            writer.file(name, data)
        writer.file(DUMP, to_bytes(graph))

    def beside(self, foreseen: Foreseen) -> list[FileSize]:
        """Configuration, tokenizer and dump; of the dump what passes do not foretell is guessed."""
        layers = {
            path: {"codec": codec.name, **codec.model_dump(mode="json")}
            for path, codec in foreseen.codecs.items()
        }
        graph, checkpoint = foreseen.graph, foreseen.checkpoint
        beside = Beside([], activations_of(graph))
        config = _configuration(graph, checkpoint.config, foreseen.facts, layers, beside)
        found = [FileSize(CONFIG, len(json_bytes(config)))]
        files = tuple(checkpoint.tokenizer_files())
        if not files:
            foreseen.unread.append("the tokenizer, of which no file is here")
        found += [FileSize(path.name, path.stat().st_size) for path in files]
        return [*found, FileSize(DUMP, len(to_bytes(graph)))]


class Beside(NamedTuple):
    """What the configuration says of layers beside their codecs."""

    biases: list[str]
    """Full paths of the linears that have a bias here alone."""
    activations: Mapping[str, Mapping[str, object]]
    """What layers do with what they read, by full path."""


def _configuration(
    graph: LayerGraph,
    config: Mapping[str, object],
    facts: Mapping[str, object],
    layers: Mapping[str, Mapping[str, object]],
    beside: Beside,
) -> dict[str, object]:
    """The configuration of an artifact: the checkpoint's own, and all about its layers."""
    return {
        **config,
        **GUARD,
        QUANTIZATION: {
            "quant_method": METHOD,
            "format_version": written_version(activations=bool(beside.activations)),
            **facts,
            "stages": [
                [graph[name].path for name in stage.layers]
                for region in graph.regions
                for stage in region.stages
            ],
            "modules_to_not_convert": [
                node.path
                for node in graph
                if node.op in (LINEAR, ROUTER) and graph[graph.owner(node.name)].path not in layers
            ],
            **({"added_biases": beside.biases} if beside.biases else {}),
            **({"activations": beside.activations} if beside.activations else {}),
            **({"mask_token": graph.model.mask} if tells_masked(graph) else {}),
            "layers": layers,
        },
    }


def _outside(graph: LayerGraph) -> tuple[str, ...]:
    return tuple(node.name for node in graph.outside())


def _shard_name(graph: LayerGraph, number: int) -> str:
    total = len(graph.regions) + 1
    return f"model-{number + 1:05d}-of-{total:05d}.safetensors"
