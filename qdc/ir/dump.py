"""The binary form of a layer graph: msgpack, versioned, full precision, validated on read.

A dump is untrusted input. Every field is checked by its pydantic class, then the whole graph by
the verifier. Annotations of unknown tags are kept as they are, under their own tag.
"""

from pathlib import Path
from typing import Any

import msgpack
from pydantic import ValidationError

from qdc.disk import read_regular
from qdc.errors import InvalidDump, QdcError
from qdc.ir.annotation import Annotation
from qdc.ir.graph import LayerGraph, Structure
from qdc.ir.lines import VERSION, Tags
from qdc.ir.opaque import Opaque
from qdc.ir.summary import Summary
from qdc.ir.verify import verify
from qdc.jsontext import model_of

FORMAT = "qdc-ir"
PARTS = {"format", "version", "after", "structure", "annotations"}
WRITTEN_BY = "dumps are written by qdc compile --dump-after; write it again, or copy it again"
LARGEST = 1 << 28
LEAST_BYTES, FREE = 6, 1000
"""Bytes that a list or a map takes on average, at the least: an empty one is a single byte, and in
memory more than sixty."""


def to_bytes(graph: LayerGraph) -> bytes:
    """Serialize a graph; equal graphs give equal bytes."""
    notes = [
        [node.name, *tagged(note)]
        for node in graph
        for note in graph.annotations(node.name).values()
    ]
    packed: bytes = msgpack.packb(
        {
            "format": FORMAT,
            "version": VERSION,
            "after": graph.after,
            "structure": graph.structure.model_dump(mode="python"),
            "annotations": notes,
        },
        use_bin_type=True,
    )
    return packed


def from_bytes(data: bytes, tags: Tags) -> LayerGraph:
    """Rebuild a graph from untrusted bytes.

    Args:
        data: what ``to_bytes`` gave.
        tags: the annotation classes that are known here, by tag.

    Raises:
        InvalidDump: the bytes are no dump, are damaged, or are of a newer version.
    """
    raw = _unpacked(data)
    version = raw.get("version")
    if raw.get("format") != FORMAT or not isinstance(version, int) or isinstance(version, bool):
        raise InvalidDump(
            "the file is no qdc IR dump", help="qdc show reads .qdc files and artifacts"
        )
    if version > VERSION or version < 1:
        raise InvalidDump(
            f"the dump has version {version}, this qdc reads 1..{VERSION}",
            help="update qdc, or write the dump again with this one",
        )
    odd = sorted(PARTS.symmetric_difference(map(str, raw)))
    if odd:
        raise InvalidDump("parts of the dump are missing or unknown", where=odd)
    try:
        graph = LayerGraph(model_of(Structure, raw["structure"]))
        after, notes = raw["after"], raw["annotations"]
        if not isinstance(after, str) or not isinstance(notes, list):
            raise InvalidDump("after or annotations of the dump have the wrong type")
        graph.after = after
        for entry in notes:
            name, note = note_from(entry, tags)
            if name not in graph:
                raise InvalidDump("an annotation is on no node", where=[f"@{tagged(note)[0]}"])
            if note.fills in graph.annotations(name):
                raise InvalidDump(f"two annotations fill @{note.fills}", where=[f"%{name}"])
            graph.annotate(name, note)
        verify(graph)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidDump(f"a field of the dump is wrong: {first['msg']}", where=[place]) from error
    except InvalidDump:
        raise
    except QdcError as error:
        raise InvalidDump(
            f"the dump is damaged: {error.what}", where=error.where, help=error.help
        ) from error
    except (RecursionError, OverflowError) as error:
        raise InvalidDump("the dump holds a graph that cannot be walked") from error
    return graph


def read(path: Path, tags: Tags) -> LayerGraph:
    """Read a dump from a file. Raises ``InvalidDump``, naming the file."""
    try:
        return from_bytes(read_regular(path, LARGEST), tags)
    except OSError as error:
        raise InvalidDump(f"cannot read the dump: {error.strerror}", where=[str(path)]) from error
    except InvalidDump as error:
        raise InvalidDump(error.what, where=[str(path), *error.where], help=error.help) from error


def _unpacked(data: bytes) -> dict[str, Any]:
    left = FREE + len(data) // LEAST_BYTES

    def counted(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError("more lists and maps than a dump can have")
        return container

    try:
        raw = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=counted,
            object_hook=counted,
            ext_hook=lambda code, found: counted(msgpack.ExtType(code, found)),
        )
    except (ValueError, msgpack.exceptions.UnpackException, TypeError, RecursionError) as error:
        raise InvalidDump("the file is no qdc IR dump, or is cut short", help=WRITTEN_BY) from error
    if not isinstance(raw, dict):
        raise InvalidDump("the file is no qdc IR dump", help=WRITTEN_BY)
    return raw


def tagged(note: Annotation) -> tuple[str, dict[str, Any]]:
    """An annotation as plain data: tag and fields. Raises ``QdcError`` for a summary of one."""
    if isinstance(note, Summary):
        raise QdcError(
            f"of @{note.of} there is no more than the line that the text shows",
            help="read the graph from a .qdc dump, or from a text in full: qdc show --full",
        )
    if isinstance(note, Opaque):
        return note.unknown_tag, note.data
    return note.tag, note.model_dump(mode="python")


def note_from(entry: Any, tags: Tags) -> tuple[str, Annotation]:
    """Read ``[node, tag, fields]``; one of an unknown tag is kept as it is."""
    match entry:
        case [str(name), str(tag), dict(fields)]:
            if tag in tags:
                return name, model_of(tags[tag], fields)
            return name, Opaque(unknown_tag=tag, data=fields)
    raise InvalidDump("an annotation of the dump is not [node, tag, fields]")
