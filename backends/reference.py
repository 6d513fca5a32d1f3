"""The portable format: a folder that ``safetensors`` and ``json`` alone can read.

One shard a region and one for the rest; ``config.json`` names each layer's codec;
``docs/format.md`` gives every tensor, shape, bit order and formula.
"""

from typing import ClassVar

import torch

from qdc.artifact.config import FORMAT_VERSION, GUARD, QUANTIZATION
from qdc.artifact.emission import Emission
from qdc.artifact.writer import CONFIG
from qdc.checkpoint.compiled import METHOD
from qdc.ir.dump import to_bytes
from qdc.ir.graph import LINEAR, LayerGraph, Region
from qdc.ir.routing import ROUTER
from qdc.pipeline.backendbase import Backend, Runtime
from qdc.runtime.dense import DenseRuntime


class Reference(Backend):
    """Write the portable folder: bit planes, scales, untouched tensors, configuration, IR dump."""

    name: ClassVar[str] = "reference"

    def runtime(self, device: torch.device, dtype: torch.dtype | None) -> Runtime:
        """Dense weights, in fp32 if not told otherwise."""
        return DenseRuntime(device, torch.float32 if dtype is None else dtype)

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
        layers, biases = emission.layers(), emission.added_biases()
        writer.json(
            CONFIG,
            {
                **emission.checkpoint.config,
                **GUARD,
                QUANTIZATION: {
                    "quant_method": METHOD,
                    "format_version": FORMAT_VERSION,
                    **emission.facts,
                    "stages": [
                        [graph[name].path for name in stage.layers]
                        for region in graph.regions
                        for stage in region.stages
                    ],
                    "modules_to_not_convert": [
                        node.path
                        for node in graph
                        if node.op in (LINEAR, ROUTER)
                        and graph[graph.owner(node.name)].path not in layers
                    ],
                    **({"added_biases": biases} if biases else {}),
                    "layers": layers,
                },
            },
        )
        for name, data in emission.checkpoint.tokenizer_bytes():
            writer.file(name, data)
        writer.file("ir.qdc", to_bytes(graph))


def _outside(graph: LayerGraph) -> tuple[str, ...]:
    return tuple(node.name for node in graph.outside())


def _shard_name(graph: LayerGraph, number: int) -> str:
    total = len(graph.regions) + 1
    return f"model-{number + 1:05d}-of-{total:05d}.safetensors"
