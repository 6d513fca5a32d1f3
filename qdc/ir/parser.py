"""Read the text form of a layer graph back.

The text is untrusted input, as a dump is: every field is checked by its pydantic class, the whole
graph by the verifier, and a text whose lines contradict each other is refused. Its size is bounded,
and so is what a line may hold.

    parse(render(graph, full=True), tags) == graph
    parse(render(graph), tags) == textual(graph)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from qdc.errors import InvalidText, QdcError
from qdc.ir.annotation import Annotation
from qdc.ir.entries import Entry, Line
from qdc.ir.graph import LayerGraph, Node, Region, Structure
from qdc.ir.lines import (
    AFTER,
    GRAPH,
    NODE,
    NOTE,
    REGION,
    VERSION,
    Tags,
    header_lines,
    node_line,
    note_line,
    printable,
    read_facts,
    read_first,
    read_node,
    read_note,
    read_region,
    region_line,
    sizes,
)
from qdc.ir.opaque import Opaque
from qdc.ir.summary import Summary
from qdc.ir.verify import verify

LARGEST = 1 << 28
"""Characters of a text, as many as a dump may have bytes."""
LONGEST, MOST_LINES, MOST_NODES = 1 << 22, 1 << 21, 1 << 18
BLIND = "unknown tag, "


@dataclass(frozen=True)
class Parsed:
    """What a text says."""

    graph: LayerGraph
    full: bool
    """Whether it says that it is in full: nothing in the graph is a placeholder."""


def parse(text: str, tags: Tags) -> LayerGraph:
    """Rebuild a graph from its text.

    What a text that is not in full leaves out comes back as ``textual`` describes.

    Args:
        text: what ``render`` gave, all nodes of it; lines that start with ``#`` are comments.
        tags: the annotation classes that are known here, by tag.

    Raises:
        InvalidText: the text does not parse, contradicts itself, or says an invalid graph.
    """
    return read_text(text, tags).graph


def read_text(text: str, tags: Tags) -> Parsed:
    """Rebuild a graph, and say whether its text was in full; arguments and errors as above."""
    if len(text) > LARGEST or text.count("\n") > MOST_LINES:
        raise InvalidText(
            f"the text has more than {LARGEST:,} characters or {MOST_LINES:,} lines",
            help="give the binary dump, which is smaller",
        )
    reader = _Reader(tags)
    for number, line in enumerate(text.split("\n"), 1):
        reader.take(Line(number, line.removesuffix("\r")))
    return reader.result()


class _Reader:
    """Sorts the lines, then builds the graph from them."""

    def __init__(self, tags: Tags) -> None:
        self.tags = tags
        self.first: Entry | None = None
        self.facts: Line | None = None
        self.after = ""
        self.nodes: list[Entry] = []
        self.regions: list[Entry] = []
        self.latest: Entry | None = None
        self.last = Line(1, "")
        self.names: dict[str, str] = {}

    def take(self, line: Line) -> None:
        """Sort one line."""
        text = line.text
        if len(text) > LONGEST:
            raise line.error(f"the line has more than {LONGEST:,} characters")
        if not text.strip(" ") or text.startswith("#"):
            return
        if not text.isprintable():
            odd = next(place for place, c in enumerate(text) if not c.isprintable())
            raise line.error(f"{text[odd]!a} stands in no text but as an escape", odd)
        self.last = line
        if self.first is None:
            if not text.startswith(GRAPH):
                raise line.error(f"a text of the IR starts with '{GRAPH}NAME'")
            self.first = self.latest = Entry(line)
        elif self.facts is None:
            self.facts = line
        elif text.startswith(AFTER) and self.latest is self.first and not self.after:
            self.after = text.removeprefix(AFTER)
        elif text.lstrip(" ").startswith("{"):
            assert self.latest is not None
            if self.latest.exact is not None:
                raise line.error("a second line of exact fields")
            self.latest.exact = line
        elif text.startswith(REGION):
            self.latest = Entry(line, first=len(self.nodes))
            self.regions.append(self.latest)
        elif text.startswith(NODE):
            self.latest = Entry(line)
            self.nodes.append(self.latest)
            if len(self.nodes) > MOST_NODES:
                raise line.error(f"more than {MOST_NODES:,} nodes")
        elif text.startswith(NOTE):
            if not self.nodes or (self.regions and self.regions[-1].first == len(self.nodes)):
                raise line.error("an annotation stands below its node", len(NOTE) - 1)
            self.latest = Entry(line)
            self.nodes[-1].notes.append(self.latest)
        else:
            raise line.error(
                f"expected a node, '{NODE}NAME = ...', an annotation, '{NOTE}TAG  ...', "
                f"or '{REGION}NAME   stages ...'",
                len(text) - len(text.lstrip(" ")),
            )

    def result(self) -> Parsed:
        """Build and check the graph."""
        if self.first is None or self.facts is None:
            raise self.last.error("the text ends before the facts of the model")
        said = self.first.line.read(read_first)
        if said["version"] != VERSION:
            raise self.first.line.error(
                f"the text has version {said['version']}, this qdc reads {VERSION}"
            )
        structure = self.structure(said["name"], *self.facts.read(read_facts))
        try:
            graph = LayerGraph(structure)
        except QdcError as error:
            raise self.refused(error) from error
        graph.after = str(self.first.fields().get("after", self.after))
        for node, entry in zip(structure.nodes, self.nodes, strict=True):
            for note in self.annotations(entry, full=said["full"]):
                graph.annotate(node.name, note)
        try:
            verify(graph)
        except QdcError as error:
            raise self.refused(error) from error
        self.agree(graph, said)
        return Parsed(graph, said["full"])

    def structure(self, name: str, prefix: str, facts: dict[str, Any]) -> Structure:
        """Everything but annotations."""
        assert self.first is not None
        fields = self.first.fields()
        unknown = sorted(fields.keys() - {"name", "prefix", "model", "after"})
        if unknown:
            raise (self.first.exact or self.first.line).error(f"unknown field {unknown[0]}")
        prefix = str(fields.get("prefix", prefix))
        nodes = tuple(self.node(entry, prefix) for entry in self.nodes)
        bounds = pairwise([*(entry.first for entry in self.regions), len(nodes)])
        regions = tuple(
            entry.made(Region, entry.line.read(read_region, nodes[start:end]))
            for entry, (start, end) in zip(self.regions, bounds, strict=True)
        )
        data = {"name": name, "model": facts, "nodes": nodes, "regions": regions}
        data |= {key: value for key, value in fields.items() if key != "after"}
        where = self.first.exact or self.facts or self.first.line
        return where.checked(lambda: Structure.model_validate({**data, "prefix": prefix}))

    def node(self, entry: Entry, prefix: str) -> Node:
        """One node; equal names are one object, however often they are read."""
        data = entry.line.read(read_node, prefix)
        data["inputs"] = tuple(self.names.setdefault(name, name) for name in data["inputs"])
        node = entry.made(Node, data)
        if entry.exact is not None:
            said = read_node(printable(node_line(node)), prefix)
            if any(said[key] != data[key] for key in said if key != "path"):
                raise entry.exact.error("the fields are not those of the line above")
        return node

    def annotations(self, entry: Entry, *, full: bool) -> Iterator[Annotation]:
        """The annotations of a node."""
        filled: set[str] = set()
        for each in entry.notes:
            note = self.annotation(each, full=full)
            if note.fills in filled:
                raise each.line.error(f"two annotations fill @{note.fills}", len(NOTE))
            filled.add(note.fills)
            yield note

    def annotation(self, entry: Entry, *, full: bool) -> Annotation:
        """One annotation: from its exact fields, from a line that says all of it, or a summary."""
        tag, text = entry.line.read(read_note)
        kind = self.tags.get(tag)
        if entry.exact is not None:
            if kind is not None:
                return entry.made(kind, {})
            fields = entry.fields()
            return entry.exact.checked(lambda: Opaque(unknown_tag=tag, data=fields))
        if full:
            raise entry.line.error(f"the text is in full, and the fields of @{tag} are missing")
        found = None if kind is None else entry.line.checked(lambda: kind.from_text(text))
        if found is not None:
            return found
        place = f"?{tag}" if kind is None else kind.slot_name()
        return entry.line.checked(lambda: Summary(of=tag, place=place, line=text))

    def agree(self, graph: LayerGraph, said: dict[str, Any]) -> None:
        """Refuse lines that say something else than the graph that was built from them."""
        assert self.first is not None
        assert self.facts is not None
        linears, weights = sizes(graph)
        if (linears, weights) != (said["linears"], said["weights"]):
            raise self.first.line.error(
                f"it announces {said['linears']:,} linears of {said['weights']:,} weights, and "
                f"{linears:,} of {weights:,} follow: a text of --only is a part, or lines are lost"
            )
        names = {node.name for node in graph}
        heading = header_lines(graph, full=said["full"])
        again = [(self.first, heading[0]), (Entry(self.facts, self.first.exact), heading[1])]
        again += zip(self.regions, (region_line(r, names) for r in graph.regions), strict=True)
        for entry, line in again:
            if entry.exact is not None and printable(line).split() != entry.line.text.split():
                raise entry.exact.error("the fields are not those of the line above")
        for node, entry in zip(graph, self.nodes, strict=True):
            notes = tuple(graph.annotations(node.name).values())
            if any(isinstance(note, Opaque) for note in notes):
                continue  # its class might have other words for those beside it
            for note, each in zip(notes, entry.notes, strict=True):
                words = printable(note_line(note, notes))
                if each.exact is None or words.rstrip() == each.line.text.rstrip():
                    continue
                if not each.line.read(read_note)[1].startswith(BLIND):
                    raise each.line.error(f"the fields below say: {words.strip()}", len(NOTE) - 1)

    def refused(self, error: QdcError) -> InvalidText:
        """An error of the graph, with the line of the first node that it names."""
        for where in error.where[:1]:
            for entry in self.nodes:
                if entry.line.text.startswith((f"  {where} ", f"  {where}=")):
                    found = entry.line.error(f"the graph is invalid: {error.what}", 2)
                    places = [*found.where, *error.where]
                    return InvalidText(found.what, where=places, help=found.help)
        return InvalidText(
            f"the text says an invalid graph: {error.what}", where=error.where, help=error.help
        )
