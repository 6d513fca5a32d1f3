"""The text form of a layer graph: deterministic, so that a ``diff`` of two is the explanation.

No addresses, paths, dates or durations; at most four significant digits. A pass adds annotation
lines and extends the ``after`` line, and leaves the rest alone.
"""

from collections.abc import Collection
from fnmatch import fnmatchcase

from qdc.errors import UnknownName, nearest
from qdc.ir.annotations import Annotation
from qdc.ir.graph import LayerGraph, Node, Region
from qdc.ir.opaque import Opaque
from qdc.ir.types import shape_text

VERSION = 1
TAG_WIDTH = 8
"""The longest tag that comes with qdc; fixed, so that a new note leaves the others as they were."""


def render(graph: LayerGraph, only: str = "*", tags: Collection[str] | None = None) -> str:
    """Return the text of a graph.

    Args:
        graph: what to print.
        only: shell pattern of node names, as in ``blocks.0.*``.
        tags: print just these annotations; None prints all.

    Raises:
        UnknownName: no node matches ``only``.
    """
    shown = _matching(graph, only)
    names = [len(node.name) for node in shown]
    bodies = [len(_body(node)) for node in shown]
    name_width, body_width = min(max(names), 28), min(max(bodies), 64)
    lines = [*_header(graph), ""]
    starts = {region.nodes[0]: region for region in graph.regions}
    owner = {name: region for region in graph.regions for name in region.nodes}
    previous: Region | None = None
    for node in shown:
        region = owner.get(node.name)
        if region is not previous and node.name in starts and region is not None:
            lines.extend([""] if lines[-1] else [])
            lines.append(_region_line(region))
        previous = region
        lines.append(
            f"  %{node.name:<{name_width}} = {_body(node):<{body_width}} : {node.type}".rstrip()
        )
        notes = [n for n in graph.annotations(node.name).values() if _wanted(n, tags)]
        lines.extend(f"      @{_tag(note):<{TAG_WIDTH}}  {note.text()}" for note in notes)
    return "\n".join(map(_printable, lines)) + "\n"


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
                    _tag(note): note.model_dump(mode="json")
                    for note in graph.annotations(node.name).values()
                    if _wanted(note, tags)
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


def _printable(line: str) -> str:
    """Names and reasons may come from a hostile dump: no line breaks, no terminal codes."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def _header(graph: LayerGraph) -> list[str]:
    linears = list(graph.linears())
    weights = sum(node.rows * node.columns for node in linears)
    model = graph.model
    prefix = f"   prefix {graph.structure.prefix}" if graph.structure.prefix else ""
    shift = f"   logits shifted by {model.logits_shift}" if model.logits_shift else ""
    blocks = f"   in blocks of {model.attention_block}" if model.attention_block else ""
    lines = [
        f"graph @{graph.name}   qdc-ir {VERSION}   {len(linears)} linears   {weights:,} weights",
        f"  family {model.family}{prefix}   mask {model.mask_token_id}   "
        f"vocabulary {model.vocabulary:,}   length {model.max_length:,}{blocks}{shift}",
    ]
    return [*lines, f"  after {graph.after}"] if graph.after else lines


def _region_line(region: Region) -> str:
    stages = " | ".join(
        " ".join(layer.removeprefix(f"{region.name}.") for layer in stage.layers)
        for stage in region.stages
    )
    return f"  region {region.name}   stages {stages}"


def _body(node: Node) -> str:
    read = " ".join(f"%{name}" for name in node.inputs)
    owned = "".join(
        f"  {'w' if p.role == 'weight' else p.role} {shape_text(p.dtype, p.shape)}"
        for p in node.parameters
    )
    return f"{node.op} {read}{owned}".rstrip()


def _tag(note: Annotation) -> str:
    return note.unknown_tag if isinstance(note, Opaque) else note.tag


def _wanted(note: Annotation, tags: Collection[str] | None) -> bool:
    return tags is None or _tag(note) in tags
