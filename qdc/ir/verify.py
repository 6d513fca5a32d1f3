"""The verifier: it runs after every pass, and on every dump and artifact that is read."""

from collections.abc import Container, Iterator

import networkx as nx

from qdc.errors import InvalidGraph
from qdc.ir.graph import LINEAR, LayerGraph, Node


def verify(graph: LayerGraph, tensors: Container[str] | None = None, after: str = "") -> None:
    """Check every invariant of a graph; report all that is broken in one error.

    Args:
        graph: the graph.
        tensors: names that a tensor reference may have; None skips that check.
        after: the pass that ran last, named in the error.

    Raises:
        InvalidGraph: topology, shapes, annotations, budgets or references are broken.
    """
    found = [
        *_topology(graph),
        *_shapes(graph),
        *_regions(graph),
        *_annotations(graph),
        *(_references(graph, tensors) if tensors is not None else ()),
    ]
    if found:
        who = f"{after} left " if after else ""
        raise InvalidGraph(
            f"{who}an invalid graph: {found[0][1]}"
            + (f" (and {len(found) - 1} more)" if len(found) > 1 else ""),
            where=list(dict.fromkeys(f"%{name}" for name, _ in found)),
            help="; ".join(dict.fromkeys(text for _, text in found[:6])),
        )


def _topology(graph: LayerGraph) -> Iterator[tuple[str, str]]:
    place = {node.name: index for index, node in enumerate(graph)}
    for node in graph:
        for name in node.inputs:
            if place[name] >= place[node.name]:
                yield node.name, f"reads %{name}, which comes later"
    if not nx.is_directed_acyclic_graph(graph.edges):
        yield next(iter(place), graph.name), "the graph has a cycle"


def _shapes(graph: LayerGraph) -> Iterator[tuple[str, str]]:
    for node in graph:
        if node.op == LINEAR:
            yield from ((node.name, text) for text in _linear_shapes(graph, node))


def _linear_shapes(graph: LayerGraph, node: Node) -> Iterator[str]:
    weights = [p for p in node.parameters if p.role == "weight"]
    if len(weights) != 1 or len(weights[0].shape) != 2 or len(node.inputs) != 1:
        yield "a linear has one input and one two-dimensional weight"
        return
    read = graph[node.inputs[0]].type.shape
    if not read or read[-1] != weights[0].shape[1]:
        yield f"reads {read[-1] if read else 'a scalar'}, its weight has {weights[0].shape[1]} columns"
    if node.type.shape != (*read[:-1], weights[0].shape[0]):
        yield f"gives {node.type}, its weight has {weights[0].shape[0]} rows"
    for parameter in node.parameters:
        if parameter.role == "bias" and parameter.shape != (weights[0].shape[0],):
            yield f"its bias is {parameter}"


def _regions(graph: LayerGraph) -> Iterator[tuple[str, str]]:
    place = {node.name: index for index, node in enumerate(graph)}
    seen: set[str] = set()
    last = -1
    for region in graph.regions:
        unknown = [name for name in region.nodes if name not in place]
        if unknown:
            yield unknown[0], f"region {region.name} holds a node that is not there"
            continue
        if seen.intersection(region.nodes):
            yield region.nodes[0], f"region {region.name} shares nodes with another"
        seen.update(region.nodes)
        if place[region.nodes[0]] <= last:
            yield region.nodes[0], f"region {region.name} is out of order"
        last = place[region.nodes[-1]]
        members = set(region.nodes)
        for stage in region.stages:
            for layer in stage.layers:
                if layer not in members or graph[layer].op != LINEAR:
                    yield layer, f"a stage of region {region.name} holds no linear of that region"
                elif graph[layer].inputs != (stage.value,):
                    yield layer, f"does not read %{stage.value}, the value of its stage"


def _annotations(graph: LayerGraph) -> Iterator[tuple[str, str]]:
    for node in graph:
        for note in graph.annotations(node.name).values():
            needs_linear = note.tag not in ("opaque", "kept")
            if needs_linear and node.op != LINEAR:
                yield node.name, f"@{note.tag} is on a {node.op}, not on a linear"
                continue
            yield from ((node.name, f"@{note.tag}: {text}") for text in note.problems(node))


def _references(graph: LayerGraph, tensors: Container[str]) -> Iterator[tuple[str, str]]:
    for node in graph:
        for note in graph.annotations(node.name).values():
            for ref in note.refs():
                if ref.name not in tensors:
                    yield node.name, f"@{note.tag} names tensor {ref.name}, which does not exist"
