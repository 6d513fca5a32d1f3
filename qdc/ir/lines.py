"""The lines of the text form, each written and read in one place.

What a line leaves out is read as a placeholder: a node with parameters has the module path that its
name and the graph's prefix give, its parameters are keyed by that path and their role, and a region
reaches from its line to the last layer of its stages and over the nodes behind it that bear its
name. So it is in the models of the built-in front end, tied weights aside.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from qdc.ir.annotation import Annotation
from qdc.ir.graph import LINEAR, LayerGraph, Node, Region
from qdc.ir.keys import file_key
from qdc.ir.opaque import Opaque
from qdc.ir.summary import Summary
from qdc.ir.types import shape_text
from qdc.ir.values import Misread

VERSION = 1
TAG_WIDTH = 8
"""The longest tag that comes with qdc; fixed, so that a new note leaves the others as they were."""
IN_FULL = "   in full"
"""Ends the first line where every fact is said: lines that leave some out have one with all below.
"""
GRAPH, FAMILY, AFTER, REGION, NODE, NOTE = (
    "graph @", "  family ", "  after ", "  region ", "  %", "      @",
)  # fmt: skip
FIELDS = "        "
"""Before ``{``: the exact fields of what the line above is about."""
Tags = Mapping[str, type[Annotation]]
"""The annotation classes that are known here, by tag."""
_THOUSANDS = r"[0-9]{1,3}(?:,[0-9]{3}){0,40}"
_FLOAT = r"[0-9]{1,20}(?:\.[0-9]{1,20})?(?:e[+-]?[0-9]{1,3})?"
_COUNTS = re.compile(
    rf"(?P<version>[0-9]{{1,9}})   (?P<linears>[0-9]{{1,9}}) linears"
    rf"   (?P<weights>{_THOUSANDS}) weights"
)
_FACTS = re.compile(
    rf"(?P<mask_token_id>[0-9]{{1,99}}|none)   vocabulary (?P<vocabulary>{_THOUSANDS})"
    rf"   length (?P<max_length>{_THOUSANDS})"
    r"(?:   in blocks of (?P<attention_block>[0-9]{1,99}))?"
    r"(?:   canvas of (?P<canvas>[0-9]{1,99}))?"
    rf"(?:   logits within (?P<logit_cap>{_FLOAT}))?"
    r"(?:   logits shifted by (?P<logits_shift>[01]))?"
)
NO_MASK = "none"
"""Stands for the mask token of a model that has none."""
_TOKEN = re.compile(r"\S+")
_SHAPE = re.compile(r"(?P<dtype>[a-z0-9]{1,16})\[(?P<shape>[A-Z0-9*,]{0,200})\]")
_NOTE = re.compile(r"      @(?P<tag>[^\s@]{1,64})(?: (?P<pad> *))?")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(000[0-9a-f]{5}|0010[0-9a-f]{4}))")


def printable(line: str) -> str:
    """Names and reasons may come from a hostile dump: no line breaks, no terminal codes."""
    if line.isprintable():
        return line
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)


def header_lines(graph: LayerGraph, *, full: bool = False) -> list[str]:
    """Name, counts, facts of the model, and the pipeline that led here."""
    count, weights = sizes(graph)
    model = graph.model
    prefix = f"   prefix {graph.structure.prefix}" if graph.structure.prefix else ""
    shift = f"   logits shifted by {model.logits_shift}" if model.logits_shift else ""
    mask = NO_MASK if model.mask_token_id is None else model.mask_token_id
    blocks = f"   in blocks of {model.attention_block}" if model.attention_block else ""
    canvas = f"   canvas of {model.canvas}" if model.canvas else ""
    canvas += f"   logits within {model.logit_cap!r}" if model.logit_cap else ""
    lines = [
        f"{GRAPH}{graph.name}   qdc-ir {VERSION}   {count} linears   {weights:,} weights"
        f"{IN_FULL if full else ''}",
        f"{FAMILY}{model.family}{prefix}   mask {mask}   "
        f"vocabulary {model.vocabulary:,}   length {model.max_length:,}{blocks}{canvas}{shift}",
    ]
    return [*lines, f"{AFTER}{graph.after}"] if graph.after else lines


def sizes(graph: LayerGraph) -> tuple[int, int]:
    """Linears, and their weights."""
    linears = list(graph.linears())
    return len(linears), sum(node.rows * node.columns for node in linears)


def read_first(line: str) -> dict[str, Any]:
    """``name``, ``version``, ``linears``, ``weights``, ``full``. Raises ``Misread``."""
    full = line.endswith(IN_FULL)
    name, mark, rest = line.removesuffix(IN_FULL).rpartition("   qdc-ir ")
    found = _COUNTS.fullmatch(rest)
    if not line.startswith(GRAPH) or not mark or found is None:
        raise Misread("expected 'graph @NAME   qdc-ir 1   N linears   N weights'")
    counts = {key: _number(value) for key, value in found.groupdict().items()}
    return {"name": name.removeprefix(GRAPH), "full": full, **counts}


def read_facts(line: str) -> tuple[str, dict[str, Any]]:
    """The prefix of the module paths, and the facts of the model. Raises ``Misread``."""
    said, mark, rest = line.rpartition("   mask ")
    found = _FACTS.fullmatch(rest)
    if not line.startswith(FAMILY) or not mark or found is None:
        raise Misread(
            "expected '  family NAME   prefix PATH   mask N   vocabulary N   length N'", 0
        )
    family, _, prefix = said.removeprefix(FAMILY).partition("   prefix ")
    if not prefix:
        family = said.removeprefix(FAMILY)
    facts: dict[str, Any] = {
        key: None if value == NO_MASK else _fact(key, value)
        for key, value in found.groupdict().items()
        if value is not None
    }
    return prefix, {"family": family, **facts}


def region_line(region: Region, names: Collection[str]) -> str:
    """A region and its stages; ``names`` are those of all nodes."""

    def short(layer: str) -> str:
        """Without the region's name; a name that would be read with it is marked."""
        if f"{region.name}.{layer}" in names:
            return f"%{layer}"
        return layer.removeprefix(f"{region.name}.")

    stages = " | ".join(" ".join(map(short, stage.layers)) for stage in region.stages)
    return f"{REGION}{region.name}   stages {stages}"


def read_region(line: str, following: Sequence[Node]) -> dict[str, Any]:
    """A region as plain data.

    Args:
        line: as ``region_line`` gives it.
        following: the nodes behind the line, up to the next region.

    Raises:
        Misread: the line is none of a region, or a stage names no linear behind it.
    """
    if line.endswith("   stages"):
        line += " "
    name, mark, rest = line.removeprefix(REGION).rpartition("   stages ")
    if not line.startswith(REGION) or not mark:
        raise Misread("expected '  region NAME   stages LAYERS | LAYERS ...'")
    if not following:
        raise Misread("no node follows the region")
    name = _unescaped(name)
    places = {node.name: place for place, node in enumerate(following)}
    stages: list[list[str]] = [[]]
    start = len(line) - len(rest)
    for token in _TOKEN.finditer(rest):
        if token[0] == "|":
            stages.append([])
            continue
        word = _unescaped(token[0])
        layer = next((n for n in (f"{name}.{word}", word.removeprefix("%")) if n in places), None)
        if layer is None or len(following[places[layer]].inputs) != 1:
            raise Misread(f"no linear {word} follows in the region", start + token.start())
        stages[-1].append(layer)
    if stages == [[]]:
        stages = []
    if not all(stages):
        raise Misread("a stage has no layers", start)
    layers = [layer for stage in stages for layer in stage]
    end = max((places[layer] for layer in layers), default=0) + 1
    for node in following[end:]:
        if node.op == LINEAR or not node.name.startswith(f"{name}."):
            break
        end += 1
    return {
        "name": name,
        "nodes": tuple(node.name for node in following[:end]),
        "stages": tuple(
            {"value": following[places[stage[0]]].inputs[0], "layers": tuple(stage)}
            for stage in stages
        ),
    }


def node_body(node: Node) -> str:
    """The operation, what it reads, and the parameters that it owns."""
    read = " ".join(f"%{name}" for name in node.inputs)
    owned = "".join(
        f"  {'w' if p.role == 'weight' else p.role} {shape_text(p.dtype, p.shape)}"
        for p in node.parameters
    )
    return f"{node.op} {read}{owned}".rstrip()


def node_line(node: Node, name_width: int = 0, body_width: int = 0) -> str:
    """``%name = operation %inputs  w dtype[shape] : type of the value``."""
    return (
        f"{NODE}{node.name:<{name_width}} = {node_body(node):<{body_width}} : {node.type}".rstrip()
    )


def read_node(line: str, prefix: str) -> dict[str, Any]:
    """A node as plain data. Raises ``Misread``."""
    tokens = [(found[0], found.start()) for found in _TOKEN.finditer(line)]
    words = [word for word, _ in tokens]
    if len(words) < 2 or words[1] != "=":
        raise Misread("expected '='", tokens[1][1] if len(tokens) > 1 else len(line))
    if len(words) < 5 or words[-2] != ":":
        raise Misread("expected ': dtype[shape]' at the end of the line", len(line))
    name, op = _unescaped(words[0].removeprefix("%")), _unescaped(words[2])
    inputs, place = [], 3
    while words[place].startswith("%"):
        inputs.append(_unescaped(words[place][1:]))
        place += 1
    path = f"{prefix}{name}"
    parameters = []
    while place < len(words) - 2:
        role, at = tokens[place]
        if place + 1 == len(words) - 2:
            raise Misread(f"expected dtype[shape] after {role}", at + len(role))
        role = "weight" if role == "w" else _unescaped(role)
        stored = _shaped(*tokens[place + 1])
        parameters.append({**stored, "name": file_key(path, role), "role": role})
        place += 2
    return {
        "name": name,
        "op": op,
        "inputs": tuple(inputs),
        "type": _shaped(*tokens[-1]),
        "path": path if parameters else "",
        "parameters": tuple(parameters),
    }


def tag_of(note: Annotation) -> str:
    """The tag under which the text and ``--json`` show an annotation."""
    if isinstance(note, Summary):
        return note.of
    return note.unknown_tag if isinstance(note, Opaque) else note.tag


def note_line(note: Annotation, beside: Collection[Annotation]) -> str:
    """``@tag  text``; ``beside`` are all annotations of the node."""
    return f"{NOTE}{tag_of(note):<{TAG_WIDTH}}  {note.words(beside)}"


def read_note(line: str) -> tuple[str, str]:
    """Tag and text of an annotation. Raises ``Misread``."""
    found = _NOTE.match(line)
    if found is None:
        raise Misread("expected '@tag  text'", len(line) - len(line.lstrip(" ")))
    tag = found["tag"]
    if found["pad"] is None and found.end() < len(line):
        raise Misread("expected a space behind the tag", found.end())
    start = len(NOTE) + max(TAG_WIDTH, len(tag)) + 2
    return tag, line[min(start, found.end()) :]


def short_form(note: Annotation, beside: Collection[Annotation]) -> Annotation:
    """What the line of an annotation says of it: all, or no more than a summary."""
    line = printable(note.words(beside))
    said = None if isinstance(note, Opaque | Summary) else type(note).from_text(line)
    return said or Summary(of=tag_of(note), place=note.fills, line=line)


def _shaped(word: str, at: int) -> dict[str, Any]:
    found = _SHAPE.fullmatch(word)
    if found is None:
        raise Misread("expected dtype[shape], as in f32[B,L,512]", at)
    sizes = found["shape"].split(",") if found["shape"] else []
    shape = tuple(int(size) if size.isdigit() else size for size in sizes)
    return {"dtype": found["dtype"], "shape": shape}


def _fact(key: str, written: str) -> int | float:
    return float(written) if key == "logit_cap" else _number(written)


def _number(digits: str) -> int:
    return int(digits.replace(",", ""))


def _unescaped(name: str) -> str:
    """Undo ``printable`` on a name, which holds no backslash of its own."""
    if "\\" not in name:
        return name
    return _ESCAPE.sub(lambda found: chr(int(found[1] or found[2] or found[3], 16)), name)
