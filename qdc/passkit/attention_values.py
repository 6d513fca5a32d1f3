"""What attention mixes: the values that linears give it, and the clip that loses least of them.

What it gives out is a mean of values, so an error of a token's values counts by the attention that
the token gets from all that look at it (IA-AQ of DLLMQuant, arXiv 2508.14090).
"""

from collections.abc import Iterator, Sequence

import torch

from qdc.errors import UnsupportedModel
from qdc.ir.activations import RowFormat
from qdc.ir.attention import ATTENTION, source
from qdc.ir.graph import LayerGraph, Node
from qdc.numerics.attention_mass import attention_mass
from qdc.passkit.token_statistics import ClipSearch
from qdc.streaming.stream import Stream


def refuse_lost_values(graph: LayerGraph, help: str) -> None:
    """Refuse a model whose values are out of reach. Raises ``UnsupportedModel`` with ``help``."""
    attentions = [node for node in graph if node.op == ATTENTION]
    lost = [node.name for node in attentions if not source(graph, node)]
    if lost or not attentions:
        raise UnsupportedModel(
            "the values of an attention are not what a linear gives, or are out of reach in "
            "models of transformers' own classes"
            if attentions
            else "the graph has no attention whose values could be quantized",
            where=[f"%{name}" for name in lost],
            help=help,
        )


def mixed(graph: LayerGraph, layers: Sequence[Node]) -> Iterator[tuple[Node, Node]]:
    """Attentions whose values these layers give, each with its layer."""
    wanted = {node.name for node in layers}
    for node in graph:
        found = source(graph, node) if node.op == ATTENTION else ""
        if found in wanted:
            yield node, graph[found]


def search_values(
    stream: Stream, attention: Node, form: RowFormat, grid: Sequence[float]
) -> tuple[tuple[float, ...], float]:
    """The best clips of an attention's values, and the share that is lost with them.

    Args:
        stream: before the attention.
        attention: reads queries, keys and values, in this order.
        form: how tokens are quantized; its clips say how many are searched.
        grid: clips to try.
    """
    names = attention.inputs[:3]
    search = ClipSearch(form, grid, None)
    parts = stream.rows(stream.masked), stream.rows(stream.data)
    batches = zip(stream.compute(names), *parts, strict=True)
    for index, (found, masked, data) in enumerate(batches):
        query, key, value = (found[name] for name in names)
        mass = attention_mass(
            query, key, stream.segments_of(index), stream.graph.model.attention_block
        )
        flat = value.flatten(2)
        columns = torch.ones(flat.shape[-1], device=flat.device)
        search.add(flat, masked, columns, (mass * data.to(mass.device)).square())
    return search.best()
