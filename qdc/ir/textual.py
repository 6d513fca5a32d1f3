"""What the text of a graph says of it: everything else becomes a placeholder.

For every graph, ``parse(render(graph)) == textual(graph)`` and
``render(textual(graph)) == render(graph)``; ``textual`` changes nothing that it has made itself.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from qdc.ir.annotation import Annotation
from qdc.ir.graph import LayerGraph, Node, Region, Structure
from qdc.ir.lines import (
    AFTER,
    header_lines,
    node_line,
    printable,
    read_facts,
    read_first,
    read_node,
    read_region,
    region_line,
    short_form,
)


def textual(graph: LayerGraph) -> LayerGraph:
    """The graph as far as its text goes.

    Module paths and the keys of parameters follow from names and prefix; regions reach as far as
    their stages and names do; an annotation is a ``Summary`` unless its line says all of it.
    """
    header = short_header(graph)
    nodes = tuple(short_node(node, str(header["prefix"])) for node in graph)
    found = LayerGraph(
        Structure(
            name=header["name"],
            prefix=header["prefix"],
            model=header["model"],
            nodes=nodes,
            regions=tuple(
                Region.model_validate(short_region(graph, region)) for region in graph.regions
            ),
        )
    )
    found.after = header["after"]
    for node in graph:
        for slot in graph.annotations(node.name):
            found.annotate(node.name, short_note(graph, node.name, slot))
    return found


def short_header(graph: LayerGraph) -> dict[str, Any]:
    """Name, prefix, facts of the model and pipeline, as the first lines are read."""
    first, facts, *after = map(printable, header_lines(graph))
    prefix, model = read_facts(facts)
    return {
        "name": read_first(first)["name"],
        "prefix": prefix,
        "model": {"logits_shift": 0, "attention_block": None, **model},
        "after": after[0].removeprefix(AFTER) if after else "",
    }


def short_node(node: Node, prefix: str) -> Node:
    """A node as its line is read."""
    return Node.model_validate(read_node(printable(node_line(node)), prefix))


def short_region(graph: LayerGraph, region: Region) -> dict[str, Any]:
    """A region as its line is read among the nodes behind it."""
    line = printable(region_line(region, {node.name for node in graph}))
    return read_region(line, _following(graph, region))


def short_note(graph: LayerGraph, name: str, slot: str) -> Annotation:
    """An annotation as its line is read."""
    notes = graph.annotations(name)
    return short_form(notes[slot], tuple(notes.values()))


def _following(graph: LayerGraph, region: Region) -> Sequence[Node]:
    """The nodes from the start of a region to the start of the next."""
    nodes = graph.structure.nodes
    place = {node.name: index for index, node in enumerate(nodes)}
    starts = [place[each.nodes[0]] for each in graph.regions]
    ends = dict(pairwise([*starts, len(nodes)]))
    start = place[region.nodes[0]]
    return nodes[start : ends[start]]
