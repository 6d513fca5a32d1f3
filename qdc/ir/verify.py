"""The verifier: it runs after every pass, and on every dump and artifact that is read."""

from collections import Counter
from collections.abc import Collection, Container, Iterator, Sequence
from fractions import Fraction

from qdc.errors import InvalidGraph
from qdc.ir.annotations import Orders, Packed
from qdc.ir.graph import EMBEDDING, LINEAR, LayerGraph, Node, Region
from qdc.ir.tuned import Tuned

Problem = tuple[str, str]
"""Node and what is wrong with it."""


def verify(
    graph: LayerGraph,
    tensors: Container[str] | None = None,
    after: str = "",
    *,
    structure: bool = True,
    only: Collection[str] | None = None,
) -> None:
    """Check every invariant of a graph; report all that is broken in one error.

    Args:
        graph: the graph.
        tensors: names that a tensor reference may have; None skips that check.
        after: the pass that ran last, named in the error.
        structure: also check what no pass can change; it is frozen, so once is enough.
        only: check what these nodes carry; all nodes if not given. A budget that is shared by the
            whole model is then checked if one of them claims it.

    Raises:
        InvalidGraph: topology, shapes, annotations, budgets or references are broken.
    """
    misshapen = list(_shapes(graph)) if structure else []
    nodes = list(graph) if only is None else [graph[name] for name in only]
    found = [
        *(_topology(graph) if structure else ()),
        *misshapen,
        *(_regions(graph) if structure else ()),
        *_annotations(graph, nodes, skipped={name for name, _ in misshapen}),
        *_promises(graph, nodes, skipped={name for name, _ in misshapen}),
        *(_references(graph, nodes, tensors) if tensors is not None else ()),
    ]
    if found:
        who = f"{after} left " if after else ""
        raise InvalidGraph(
            f"{who}an invalid graph: {found[0][1]}"
            + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""),
            where=list(dict.fromkeys(f"%{name}" for name, _ in found)),
            help="; ".join(dict.fromkeys(text for _, text in found[:6])),
        )


def _topology(graph: LayerGraph) -> Iterator[Problem]:
    """Execution order is topological, which also rules out cycles."""
    place = {node.name: index for index, node in enumerate(graph)}
    for node in graph:
        for name in node.inputs:
            if place[name] >= place[node.name]:
                yield node.name, f"reads %{name}, which does not come before it"


def _shapes(graph: LayerGraph) -> Iterator[Problem]:
    for node in graph:
        if node.op == LINEAR:
            yield from ((node.name, text) for text in _linear_shapes(graph, node))
        elif node.op == EMBEDDING:
            weights = [len(p.shape) for p in node.parameters if p.role == "weight"]
            if weights != [2] or node.type.shape[-1:] != (node.columns,):
                yield node.name, "an embedding has one two-dimensional weight and gives its rows"


def _linear_shapes(graph: LayerGraph, node: Node) -> Iterator[str]:
    weights = [p for p in node.parameters if p.role == "weight"]
    if len(weights) != 1 or len(weights[0].shape) != 2 or len(node.inputs) != 1:
        yield "a linear has one input and one two-dimensional weight"
        return
    rows, columns = weights[0].shape
    read = graph[node.inputs[0]].type
    if read.shape[-1:] != (columns,):
        yield f"reads {read}, its weight has {columns} columns"
    if node.type.shape != (*read.shape[:-1], rows):
        yield f"gives {node.type}, its weight has {rows} rows"
    for parameter in node.parameters:
        if parameter.role == "bias" and parameter.shape != (rows,):
            yield f"its bias is {parameter}"


def _regions(graph: LayerGraph) -> Iterator[Problem]:
    place = {node.name: index for index, node in enumerate(graph)}
    names = Counter(region.name for region in graph.regions)
    following = 0
    for region in graph.regions:
        first = region.nodes[0]
        if names[region.name] > 1:
            yield first, f"more than one region is called {region.name}"
        unknown = [name for name in region.nodes if name not in place]
        if unknown:
            yield from (
                (n, f"region {region.name} holds a node that is not there") for n in unknown
            )
            continue
        places = [place[name] for name in region.nodes]
        if places != list(range(places[0], places[0] + len(places))):
            yield first, f"region {region.name} is not one piece of the execution order"
        elif places[0] < following:
            yield first, f"region {region.name} starts before the one ahead of it ends"
        following = max(following, *(index + 1 for index in places))
        yield from _stages(graph, region, place)


def _stages(graph: LayerGraph, region: Region, place: dict[str, int]) -> Iterator[Problem]:
    """Each linear of a region is in one stage, with all that read the same value, in order."""
    where = f"region {region.name}"
    linears = {name for name in region.nodes if graph[name].op == LINEAR}
    uses = Counter(layer for stage in region.stages for layer in stage.layers)
    values = Counter(stage.value for stage in region.stages)
    yield from ((n, f"a stage of {where} holds no linear of it") for n in uses if n not in linears)
    yield from (
        (n, f"{uses[n]} stages of {where} hold it") for n in sorted(linears) if uses[n] != 1
    )
    following = -1
    for stage in region.stages:
        inside = [layer for layer in stage.layers if layer in linears]
        for layer in inside:
            if graph[layer].inputs != (stage.value,):
                yield layer, f"does not read %{stage.value}, the value of its stage"
        if values[stage.value] > 1:
            yield stage.layers[0], f"two stages of {where} read %{stage.value}"
        if inside and place[inside[0]] <= following:
            yield inside[0], f"the stages of {where} are not in execution order"
        following = max([following, *(place[layer] for layer in inside[:1])])


def _annotations(
    graph: LayerGraph, nodes: Sequence[Node], skipped: Container[str]
) -> Iterator[Problem]:
    """Ask each annotation; those of ``skipped`` nodes have no shape to be compared with."""
    for node in nodes:
        for note in graph.annotations(node.name).values():
            if note.on and node.op not in note.on:
                yield node.name, f"@{note.tag} is on a {node.op}, not on a {' or '.join(note.on)}"
            elif node.name not in skipped:
                yield from ((node.name, f"@{note.tag}: {text}") for text in note.problems(node))


def _promises(
    graph: LayerGraph, nodes: Sequence[Node], skipped: Container[str]
) -> Iterator[Problem]:
    """What an allocation claims beyond one annotation: a mean over layers, bytes of the packed."""
    claimed = False
    for node in nodes:
        orders = graph.get(node.name, Orders)
        if orders is None or node.op != LINEAR or node.name in skipped:
            continue
        claimed = claimed or orders.scope == "model"
        packed, tuned = graph.get(node.name, Packed), graph.get(node.name, Tuned)
        if orders.stored_bytes is not None and packed is not None:
            taken = packed.nbytes + (0 if tuned is None else tuned.added_bytes(node))
            if taken > orders.stored_bytes:
                allowed = f"its allocation counts on {orders.stored_bytes:,}"
                yield node.name, f"stores {taken:,} bytes, {allowed}"
    if claimed:
        yield from _shared_budgets(graph, skipped)


def _shared_budgets(graph: LayerGraph, skipped: Container[str]) -> Iterator[Problem]:
    shared: dict[Fraction | int, list[tuple[Node, Orders]]] = {}
    for node in graph.linears():
        orders = graph.get(node.name, Orders)
        if orders is None or orders.scope != "model" or node.name in skipped:
            continue
        if orders.budget is not None:
            shared.setdefault(orders.budget, []).append((node, orders))
    for budget, members in shared.items():
        bits = sum(note.total * node.rows for node, note in members)
        weights = sum(sum(note.widths) * node.rows for node, note in members)
        if bits != budget * weights:
            mean = f"mean order {bits / weights:.6g} over {len(members)} layers"
            yield members[0][0].name, f"{mean} breaks the strict budget of {budget}"


def _references(
    graph: LayerGraph, nodes: Sequence[Node], tensors: Container[str]
) -> Iterator[Problem]:
    for node in nodes:
        for note in graph.annotations(node.name).values():
            for ref in note.refs():
                if ref.name not in tensors:
                    yield node.name, f"@{note.tag} names tensor {ref.name}, which does not exist"
