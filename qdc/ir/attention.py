"""Where an attention of the layer graph finds the values that it mixes, and who reads them."""

from typing import Final, NamedTuple

from qdc.ir.annotations import Kept
from qdc.ir.graph import LINEAR, LayerGraph, Node

ATTENTION: Final = "attention"
VIEWS: Final = (
    "unflatten", "view", "reshape", "transpose", "permute", "contiguous", "unsqueeze", "expand",
)  # fmt: skip
"""Operations between a value projection and attention that move or repeat numbers, no more."""


class Mixing(NamedTuple):
    """An attention between two linears that are to be quantized, with nothing else in between."""

    value: str
    """The value projection."""
    output: str
    """The linear that reads the heads' results side by side."""
    heads: int
    """Of the values."""
    width: int
    """Columns of a head."""


def places(graph: LayerGraph, attention: Node) -> int | None:
    """The dimension that counts tokens in queries, keys and values; None where none is known.

    qdc's own attention reads them as [b, length, heads, width] each, in this order, exported ones
    as [b, heads, length, width].
    """
    shapes = [graph[name].type.shape for name in attention.inputs[:3]]
    if len(shapes) < 3 or any(len(shape) != 4 or shape[0] != "B" for shape in shapes):
        return None
    for place in (1, 2):
        if all(shape[place] == "L" for shape in shapes):
            return place
    return None


def source(graph: LayerGraph, attention: Node) -> str:
    """The linear whose output an attention mixes; empty if there is none."""
    if places(graph, attention) is None:
        return ""
    node = graph[attention.inputs[2]]
    while node.op in VIEWS and len(node.inputs) == 1:
        node = graph[node.inputs[0]]
    return node.name if node.op == LINEAR else ""


def mixing(graph: LayerGraph, attention: Node) -> Mixing | None:
    """The two linears around an attention; None where something else reads what is between them.

    A rotation of each head's values then comes out of the attention as it went in: what is mixed
    is linear in them. The value projection has no bias.
    """
    value, readers = source(graph, attention), list(graph.edges.successors(attention.name))
    apart = places(graph, attention) == 1
    if not (value and apart) or len(readers) != 1 or graph[readers[0]].op != LINEAR:
        return None
    heads, width = graph[attention.inputs[2]].type.shape[2:]
    read, queries = graph[readers[0]], graph[attention.inputs[0]].type.shape[2]
    fits = (
        isinstance(heads, int)
        and isinstance(width, int)
        and isinstance(queries, int)
        and graph[value].rows == heads * width
        and read.columns == queries * width
    )
    biased = any(parameter.role == "bias" for parameter in graph[value].parameters)
    if not fits or biased or not _alone(graph, value, attention.name):
        return None
    wanted = {node.name for node in graph.layers()}
    if any(name not in wanted or graph.get(name, Kept) for name in (value, read.name)):
        return None
    return Mixing(value, read.name, int(heads), int(width))


def _alone(graph: LayerGraph, value: str, attention: str) -> bool:
    """Whether what a linear gives reaches one attention, and nothing else."""
    name = value
    while True:
        readers = list(graph.edges.successors(name))
        if len(readers) != 1:
            return False
        if readers[0] == attention:
            return True
        if graph[readers[0]].op not in VIEWS:
            return False
        (name,) = readers
