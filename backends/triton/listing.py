"""``kernels.json``: what would be launched for each stage of an artifact, and how often.

Written beside the weights for people and scripts. No loader reads it: which kernel runs is decided
at run time, by the table of the machine that runs it.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)

from qdc.format.codec import Codec
from qdc.format.multibinary import MultiBinary
from qdc.format.trelliscode import TrellisCode
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.activations import of_activations
from qdc.ir.graph import EMBEDDING, LayerGraph
from qdc.numerics.hadamard import transform_size

from .layout import TILE_ROWS
from .parts import can_join, tile_columns
from .variants import EXPAND, Choice, default_choice, trellis_choice, uniform_choice

NAME = "kernels.json"
TOKENS = (1, 4, 16, 32, 64, 128, 256, 1024, 4096)
"""Rows of activations for which the choice is written."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Launch(_Strict):
    """One launch, and every group of layers that is run by one like it."""

    layers: tuple[tuple[str, ...], ...]
    """Full paths; a group of several is joined."""
    codec: str
    rows: tuple[int, ...]
    """Outputs of each joined layer."""
    columns: int = Field(gt=0)
    stored_bytes: int = Field(gt=0)
    """Of one group, in the artifact."""
    orders: dict[int, int] = Field(default_factory=dict)
    """How many blocks have each order; only of ``multi-binary``."""
    rotated: int = Field(default=0, ge=0)
    """Size of the transform that rotates what is read, in a launch before this one; 0 for none.
    Linears that are found to read one value have one such launch."""
    kernels: dict[int, str]
    """Rows of activations, and the variant that runs up to so many; ``x 4`` programs share a tile
    of outputs."""

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what says that nothing is rotated."""
        data: dict[str, Any] = dump(self)
        return {name: value for name, value in data.items() if name != "rotated" or value}


class Kernels(_Strict):
    """The whole file."""

    table: str = "defaults"
    """Whose choices: those without tuning, which are the same on every machine."""
    dtype: str = "bfloat16"
    """Dtype of the activations that the kernels read and give."""
    launches: tuple[Launch, ...]
    compiled: tuple[dict[str, Any], ...] = ()
    """With the option ``ahead``: registers, shared memory, spills and instructions of every kernel
    of the default table, as the compiler made them for each GPU that was named."""


def list_kernels(graph: LayerGraph, codecs: Mapping[str, Codec], joined: bool) -> Kernels:
    """What the default table picks for a compiled model.

    Args:
        graph: of the model.
        codecs: of the quantized layers, by full path.
        joined: whether linears that read one value become one launch.
    """
    launches: dict[str, Launch] = {}
    alike: dict[str, list[tuple[str, ...]]] = {}
    turns = _rotations(graph)
    for group in _groups(graph, codecs, turns, joined):
        embedding = any(node.path in group and node.op == EMBEDDING for node in graph)
        launch = _launch([codecs[path] for path in group], embedding, group[0] in turns)
        key = launch.model_dump_json()
        launches[key] = launch
        alike.setdefault(key, []).append(group)
    return Kernels(
        launches=tuple(
            launch.model_copy(update={"layers": tuple(alike[key])})
            for key, launch in launches.items()
        )
    )


def _rotations(graph: LayerGraph) -> dict[str, int]:
    """Seeds of the rotations of inputs, by full path."""
    found = {node.path: of_activations(graph, node.name) for node in graph.layers()}
    does = {path: each for path, each in found.items() if each is not None}
    return {path: each.rotation for path, each in does.items() if each.rotation is not None}


def _groups(
    graph: LayerGraph, codecs: Mapping[str, Codec], turns: Mapping[str, int], joined: bool
) -> Iterator[tuple[str, ...]]:
    """Layers that are launched together, in execution order."""
    partners: dict[str, list[list[str]]] = {}
    for stage in (stage for region in graph.regions for stage in region.stages):
        groups: list[list[str]] = []
        for path in (graph[name].path for name in stage.layers):
            if path not in codecs:
                continue
            fitting = (
                g
                for g in groups
                if can_join([codecs[p] for p in (*g, path)]) and turns.get(path) == turns.get(g[0])
            )
            group = next(fitting, None) if joined else None
            if group is None:
                groups.append([path])
            else:
                group.append(path)
        partners.update({group[0]: [group] for group in groups})
        partners.update({path: [] for group in groups for path in group[1:]})
    for path in (node.path for node in graph if node.path in codecs):
        for group in partners.get(path, [[path]]):
            yield tuple(group)


def _launch(codecs: Sequence[Codec], embedding: bool, rotated: bool) -> Launch:
    first = codecs[0]
    orders: dict[int, int] = {}
    if isinstance(first, MultiBinary):
        orders = dict(sorted(Counter(first.orders).items()))
    return Launch(
        layers=(),
        codec=first.name,
        rows=tuple(codec.rows for codec in codecs),
        columns=first.columns,
        stored_bytes=sum(codec.nbytes for codec in codecs),
        orders=orders,
        rotated=transform_size(first.columns) if rotated else 0,
        kernels={
            tokens: "embedding" if embedding else _kernel(codecs, tokens) for tokens in TOKENS
        },
    )


def _kernel(codecs: Sequence[Codec], tokens: int) -> str:
    codec = codecs[0]
    if isinstance(codec, UniformGrid):
        return uniform_choice(tokens).name
    if isinstance(codec, TrellisCode):
        tiles = sum(-(-one.rows // codec.height) for one in codecs)
        return _text(trellis_choice(tokens, tiles, codec.height, codec.columns))
    assert isinstance(codec, MultiBinary)
    padded = sum(-(-one.rows // TILE_ROWS) * TILE_ROWS for one in codecs)
    width = tile_columns(codec.block)
    assert width is not None
    parts = [
        order
        for block, order in zip(codec.column_blocks, codec.orders, strict=True)
        for _ in range(-(-(block.stop - block.start) // width))
    ]
    units = sum(-(-order // 2) for order in parts)
    return _text(default_choice(tokens, padded, units))


def _text(choice: Choice) -> str:
    shared = f" x {choice.split}" if choice.variant != EXPAND and choice.split > 1 else ""
    return choice.variant.name + shared
