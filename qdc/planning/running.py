"""What running an artifact needs, from headers alone: of one that is there, or of one to come."""

import contextlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path

import torch
from pydantic import Field
from torch.nn import functional

from qdc.artifact.config import parse_codec, parse_quantization
from qdc.artifact.writer import DUMP, is_artifact
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidArtifact, QdcError
from qdc.format.codec import Codec
from qdc.frontend.encoding import open_encoder
from qdc.ir.activations import of_activations
from qdc.ir.dump import read
from qdc.ir.graph import EMBEDDING, LayerGraph
from qdc.ir.keys import WEIGHT
from qdc.ir.routing import ROUTED
from qdc.ir.types import Frozen, ValueType
from qdc.pipeline.builder import build_backend
from qdc.pipeline.registry import Registry
from qdc.pipeline.running import Layer, Running
from qdc.planning.options import ForecastOptions
from qdc.planning.outlook import RuntimeMemory
from qdc.runtime.integers import is_integer
from qdc.streaming.memory import free_memory, machine_memory, resident_bytes
from qdc.streaming.work import FP32, bytes_of

TOKENS = 512
"""Of the forward that is foreseen, unless the model takes fewer or the user says so."""
RUNNING = ("qdc.runtime.load", "qdc.runtime.decoding.strategies", "qdc.evaluation.infill")
"""What ``qdc run`` imports beside what a plan has."""
WORDS, SIDE = "for i in range(10):", 256
OF_RUNNING = {"model_dir", "length", "plugins"}
"""Options that mean something for an artifact."""


class RunOutlook(Frozen):
    """An artifact that is there, and what running it takes."""

    artifact: str
    family: str
    pipeline: str
    tensor_bytes: int
    tokens: int
    """Of the forward."""
    runtimes: tuple[RuntimeMemory, ...]
    memory: int
    """Bytes that the machine has."""
    free_memory: int | None
    schema_version: int = Field(default=1)

    def as_data(self) -> dict[str, object]:
        """Everything, ready for JSON."""
        data = self.model_dump(mode="json")
        return {**data, "runtimes": [runtime.as_data() for runtime in self.runtimes]}


def is_compiled(folder: Path) -> bool:
    """Whether a plan of this folder is about running it."""
    return is_artifact(folder)


def foresee_running(options: ForecastOptions, registry: Registry) -> RunOutlook:
    """Work out what running an artifact takes; no tensor is read.

    Raises:
        QdcError: an option is given that is of a compile, or the artifact is damaged.
    """
    given = sorted(options.model_fields_set - OF_RUNNING)
    given = [name for name in given if getattr(options, name) is not None]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise QdcError(
            f"{names} changes nothing: the folder is an artifact, and the plan is of running it",
            where=[str(options.model_dir)],
            help="leave it out, or plan the model that the artifact was compiled from",
        )
    source = Checkpoint(options.model_dir)
    quantization, known = parse_quantization(source.config), registry.codecs()
    codecs = {
        path: parse_codec(path, fields, known) for path, fields in quantization.layers.items()
    }
    dump = options.model_dir / DUMP
    if not dump.is_file():
        raise InvalidArtifact(
            "there is no IR dump, which has the shapes",
            where=[str(dump)],
            help="fetch the artifact again, or plan the model that it was compiled from",
        )
    graph = read(dump, registry.annotations())
    tokens = tokens_of(options.length, graph)
    base = process_bytes(options.model_dir, registry)
    return RunOutlook(
        artifact=str(options.model_dir),
        family=graph.model.family,
        pipeline=quantization.pipeline,
        tensor_bytes=sum(header.nbytes for header in source.headers.values()),
        tokens=tokens,
        runtimes=tuple(runtimes(registry, graph, codecs, tokens, base)),
        memory=machine_memory(),
        free_memory=free_memory(),
    )


def process_bytes(folder: Path, registry: Registry) -> int:
    """Bytes of a process that is about to run a model: this one, once it has all that it takes.

    Libraries come into memory as they are used, so their parts that a forward uses are.
    """
    for module in RUNNING:
        import_module(module)
    with contextlib.suppress(QdcError):  # one without a tokenizer is run on token ids
        open_encoder(folder, families=registry.families)(WORDS)
    with torch.inference_mode():
        rows = torch.ones(1, 2, SIDE, SIDE)
        mixed = functional.scaled_dot_product_attention(rows, rows, rows)
        functional.rms_norm(functional.silu(mixed @ rows), (SIDE,)).softmax(-1).argmax(-1)
    return resident_bytes()


def tokens_of(asked: int | None, graph: LayerGraph) -> int:
    """Tokens of the forward. Raises ``QdcError`` for more than the model takes."""
    longest = graph.model.max_length
    if asked is not None and asked > longest:
        raise QdcError(
            f"--length {asked} is beyond the model's {longest} tokens",
            help=f"the longest is --length {longest}",
        )
    return asked or min(TOKENS, longest)


def runtimes(
    registry: Registry,
    graph: LayerGraph,
    codecs: Mapping[str, Codec],
    tokens: int,
    base: int,
) -> Iterator[RuntimeMemory]:
    """What every backend that runs on a CPU, and says what it holds, needs for the model.

    Args:
        registry: knows the backends.
        graph: of the compiled model.
        codecs: of its quantized layers, by path.
        tokens: of the forward.
        base: bytes of a process without a model.
    """
    running = Running(tuple(_layers(graph, codecs)), tokens, values_bytes(graph, tokens))
    for name in registry.backends:
        found = build_backend(name, registry).resident(running)
        if found is not None:
            yield RuntimeMemory(
                backend=name,
                process_bytes=base,
                parts={kind: nbytes for kind, nbytes in found.parts.items() if nbytes},
                loading_bytes=found.loading,
            )


def values_bytes(graph: LayerGraph, tokens: int) -> int:
    """Most bytes of fp32 values at a time in a forward, each dropped after its last reader."""
    sizes = {"B": 1, "L": tokens, ROUTED: tokens}
    last = {name: node.name for node in graph for name in node.inputs}
    live: dict[str, int] = {}
    highest = 0
    for node in graph:
        live[node.name] = bytes_of(node.type, sizes, FP32)
        highest = max(highest, sum(live.values()))
        for name in node.inputs:
            if last[name] == node.name:
                live.pop(name, None)
    return highest


def _layers(graph: LayerGraph, codecs: Mapping[str, Codec]) -> Iterator[Layer]:
    """Everything that is stored, in the order of the model, each once."""
    readers = {node.name: graph.owner(node.name) for node in graph}
    shared = {to for name, to in readers.items() if name != to}
    seen = set[str]()
    for node in graph:
        owner = graph[readers[node.name]]
        codec = codecs.get(owner.path)
        if codec is not None and owner.name == node.name:
            tied = node.name in shared
            embedding = node.op == EMBEDDING
            does = of_activations(graph, node.name)
            yield Layer(
                node.path,
                codec,
                None,
                embedding,
                multiplied=tied or not embedding,
                integer=is_integer(codec, does),
                rotated=does is not None and does.rotation is not None,
            )
        for parameter in node.parameters:
            if parameter.name in seen or (codec is not None and parameter.role == WEIGHT):
                continue
            seen.add(parameter.name)
            kind = ValueType(dtype=parameter.dtype, shape=parameter.shape)
            yield Layer(parameter.name, None, kind)
