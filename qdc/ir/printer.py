"""The text form of a layer graph: deterministic, so that a ``diff`` of two is the explanation.

No addresses, paths, dates or durations; at most four significant digits. A pass adds annotation
lines and extends the ``after`` line, and leaves the rest alone. In full the same lines are followed
by the exact fields of what they leave out, and the text can be read back without loss.
"""

from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

from qdc.errors import QdcError, UnknownName, nearest
from qdc.ir.dump import tagged
from qdc.ir.graph import LayerGraph, Node, Region
from qdc.ir.lines import (
    FIELDS,
    VERSION,
    header_lines,
    node_body,
    node_line,
    note_line,
    printable,
    region_line,
    tag_of,
)
from qdc.ir.textual import short_header, short_node, short_region
from qdc.ir.values import write_value


def render(
    graph: LayerGraph,
    only: str = "*",
    tags: Collection[str] | None = None,
    *,
    full: bool = False,
) -> str:
    """Return the text of a graph.

    Args:
        graph: what to print.
        only: shell pattern of node names, as in ``blocks.0.*``.
        tags: print just these annotations; None prints all.
        full: also print the exact fields of everything that its line says in part.

    Raises:
        UnknownName: no node matches ``only``.
        QdcError: ``full``, and of an annotation there is no more than its line; or it holds a value
            that a dump cannot hold.
    """
    shown = _matching(graph, only)
    name_width = min(max(len(node.name) for node in shown), 28)
    body_width = min(max(len(node_body(node)) for node in shown), 64)
    exact = _Exact(graph) if full else None
    lines = [*header_lines(graph, full=full), *(exact.header() if exact else ()), ""]
    starts = {region.nodes[0]: region for region in graph.regions}
    owner = {name: region for region in graph.regions for name in region.nodes}
    names = {node.name for node in graph}
    previous: Region | None = None
    for node in shown:
        region = owner.get(node.name)
        if region is not previous and node.name in starts and region is not None:
            lines.extend([""] if lines[-1] else [])
            lines.append(region_line(region, names))
            lines.extend(exact.region(region) if exact else ())
        previous = region
        lines.append(node_line(node, name_width, body_width))
        lines.extend(exact.node(node) if exact else ())
        notes = tuple(graph.annotations(node.name).values())
        for note in notes:
            if tags is None or tag_of(note) in tags:
                lines.append(note_line(note, notes))
                lines.extend(exact.note(node.name, note.fills) if exact else ())
    return "\n".join(map(printable, lines)) + "\n"


def as_data(
    graph: LayerGraph, only: str = "*", tags: Collection[str] | None = None
) -> dict[str, object]:
    """Return the same content as plain data, for ``--json``; arguments and errors as above."""
    shown = _matching(graph, only)
    names = {node.name for node in shown}
    return {
        "graph": graph.name,
        "version": VERSION,
        "model": graph.model.model_dump(),
        "after": graph.after,
        "regions": [
            region.model_dump(mode="json")
            for region in graph.regions
            if not names.isdisjoint(region.nodes)
        ],
        "nodes": [
            {
                **node.model_dump(mode="json"),
                "annotations": {
                    tag_of(note): note.model_dump(mode="json")
                    for note in graph.annotations(node.name).values()
                    if tags is None or tag_of(note) in tags
                },
            }
            for node in shown
        ],
    }


def _matching(graph: LayerGraph, only: str) -> list[Node]:
    shown = [node for node in graph if fnmatchcase(node.name, only)]
    if not shown:
        raise UnknownName(f"no node matches {only!r}", help=nearest(only, [n.name for n in graph]))
    return shown


class _Exact:
    """The exact fields below each line, where the line is read as something else."""

    def __init__(self, graph: LayerGraph) -> None:
        self.graph = graph

    def header(self) -> list[str]:
        graph, short = self.graph, short_header(self.graph)
        found = {"name": graph.name, "prefix": graph.structure.prefix, "after": graph.after}
        return _line(_differing({**found, "model": graph.model.model_dump()}, short))

    def region(self, region: Region) -> list[str]:
        return _line(_differing(region.model_dump(), short_region(self.graph, region)))

    def node(self, node: Node) -> list[str]:
        short = short_node(node, self.graph.structure.prefix)
        return _line(_differing(node.model_dump(), short.model_dump()))

    def note(self, name: str, slot: str) -> list[str]:
        note = self.graph.annotations(name)[slot]
        try:
            return [f"{FIELDS}{write_value(tagged(note)[1])}"]
        except QdcError as error:
            where = [f"@{tag_of(note)} on %{name}"]
            raise QdcError(error.what, where=where, help=error.help) from error


def _differing(exact: Mapping[str, object], short: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in exact.items() if short.get(key) != value}


def _line(fields: Mapping[str, object]) -> list[str]:
    return [f"{FIELDS}{write_value(fields)}"] if fields else []
