"""What attention mixes: the values that linears give it, and the clip that loses least of them.

What it gives out is a mean of values, so an error of a token's values counts by the attention that
the token gets from all that look at it (IA-AQ of DLLMQuant, arXiv 2508.14090).
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.ir.activations import RowFormat
from qdc.ir.attention import ATTENTION, places, source
from qdc.ir.graph import LayerGraph, Node
from qdc.passkit.token_statistics import ClipSearch
from qdc.streaming.stream import Stream


def refuse_lost_values(graph: LayerGraph, help: str) -> None:
    """Refuse a model whose values are out of reach. Raises ``UnsupportedModel`` with ``help``."""
    attentions = [node for node in graph if node.op == ATTENTION]
    lost = [node.name for node in attentions if not source(graph, node)]
    if lost or not attentions:
        raise UnsupportedModel(
            "the values of an attention are not what a linear of their own gives"
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


def read_by(stream: Stream, attention: Node) -> list[str]:
    """The values that an attention reads; a mask that no one gives is none of them."""
    return [name for name in attention.inputs if name not in stream.order.absent]


def search_values(
    stream: Stream, attention: Node, value: Node, form: RowFormat, grid: Sequence[float]
) -> tuple[tuple[float, ...], float]:
    """The best clips of an attention's values, and the share that is lost with them.

    Args:
        stream: before the attention.
        attention: reads queries, keys and values, in this order.
        value: the linear that gives its values.
        form: how tokens are quantized; its clips say how many are searched.
        grid: clips to try.
    """
    names = tuple(dict.fromkeys((value.name, *read_by(stream, attention))))
    search = ClipSearch(form, grid, None)
    parts = stream.rows(stream.masked), stream.rows(stream.data)
    batches = zip(stream.compute(names), *parts, strict=True)
    for index, (found, masked, data) in enumerate(batches):
        mass = attention_mass(stream, attention, found, stream.segments_of(index))
        flat = found[value.name]
        columns = torch.ones(flat.shape[-1], device=flat.device)
        search.add(flat, masked, columns, (mass * data.to(mass.device)).square())
    return search.best()


def attention_mass(
    stream: Stream, attention: Node, found: Mapping[str, Tensor], segments: Tensor | None
) -> Tensor:
    """How much attention each token gets: softmax weights, added up over heads and queries.

    What attention gives out is linear in values, so the derivative of its sum by a token's value is
    what that token gets, whatever mask, scale or window the model's attention has.

    Args:
        stream: executes the attention.
        attention: of the stream's graph.
        found: what it reads, by name, f32 on the device.
        segments: i64[b, length]; positions see those of their own segment alone. None: all see all.

    Returns:
        f32[b, length]; over a sample it sums up to heads times positions.
    """
    name, place = attention.inputs[2], places(stream.graph, attention)
    assert place is not None, "a value with a source has tokens"
    read = {each: found[each] for each in read_by(stream, attention)}
    value = found[name].detach().requires_grad_()
    with torch.enable_grad():
        mixed = stream.executor.run(
            read | {name: value},
            [attention.name],
            {attention.name: {}},
            (attention.name,),
            segments,
        )
        (slope,) = torch.autograd.grad(mixed[attention.name].sum(), value)
    return slope[..., 0].sum(3 - place)
