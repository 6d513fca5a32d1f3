"""Graphs that commands are given: binary dumps, texts, and the dump of an artifact."""

import logging
import sys
from codecs import BOM_UTF8
from collections.abc import Callable
from pathlib import Path

from qdc.artifact.digests import Digests
from qdc.artifact.writer import DUMP
from qdc.checkpoint.folder import Checkpoint
from qdc.disk import read_regular
from qdc.errors import InvalidDump, InvalidText, QdcError
from qdc.ir.dump import LARGEST, from_bytes
from qdc.ir.lines import GRAPH, Tags
from qdc.ir.parser import Parsed, read_text
from qdc.modelfiles import read_inside

log = logging.getLogger(__name__)

STDIN = "-"
PEEK = 1 << 12
"""Bytes in which a text begins, empty lines before it."""


def read_graph(path: Path, tags: Tags) -> Parsed | None:
    """Read a dump, a text, or the dump of an artifact; None if the path is a folder without one.

    Args:
        path: a file, a folder, or ``-`` for stdin.
        tags: the annotation classes that are known here, by tag.

    Raises:
        InvalidDump: the file cannot be read, or is no dump.
        InvalidText: it is a text that cannot be read back.
        InvalidArtifact: the dump of an artifact has not the digest that it was written with.
        QdcError: there is nothing at the path.
    """
    if str(path) == STDIN:
        return _parsed(_stdin(), "stdin", tags)
    if path.is_dir():
        path = path / DUMP
        if not path.is_file():
            return None
        digests = Digests.of(path.parent)
        digests.tell_missing()
        digests.check((DUMP,))
        _tell_lost(path.parent)
        return _parsed(_read(path, read_inside), str(path), tags)
    if not path.exists():
        raise QdcError(
            f"no such file or folder: {path}", help="give a .qdc dump, a text of one or an artifact"
        )
    return _parsed(_read(path, read_regular), str(path), tags)


def _tell_lost(folder: Path) -> None:
    """Say in the log what of an artifact's tensors cannot be read; its graph is shown anyway."""
    try:
        _ = Checkpoint(folder).headers
    except QdcError as error:
        what = ": ".join((*error.where[:1], error.what))
        log.warning("only the graph is whole: %s; qdc verify says more", what)


def refuse_part(parsed: Parsed, path: Path) -> None:
    """Raise ``QdcError`` for a text of which nothing whole can be made."""
    if not parsed.full:
        raise QdcError(
            "the text leaves facts out, and what is in full must have all of them",
            where=[str(path)],
            help="give the .qdc dump, or a text in full: qdc show --full",
        )


def _read(path: Path, read: Callable[[Path, int], bytes]) -> bytes:
    try:
        return read(path, LARGEST)
    except OSError as error:
        raise InvalidDump(f"cannot read the dump: {error.strerror}", where=[str(path)]) from error


def _parsed(data: bytes, where: str, tags: Tags) -> Parsed:
    start = data[:PEEK].removeprefix(BOM_UTF8).lstrip(b" \r\n")  # as the parser passes over lines
    try:
        if start.startswith((GRAPH.encode(), b"#")):
            return read_text(data.decode("utf-8-sig"), tags)
        return Parsed(from_bytes(data, tags), full=True)
    except UnicodeDecodeError as error:
        raise InvalidText(
            "the text of the IR is not UTF-8", where=[where], help="convert it first"
        ) from error
    except (InvalidDump, InvalidText) as error:
        raise type(error)(error.what, where=[where, *error.where], help=error.help) from error


def _stdin() -> bytes:
    if sys.stdin is None:
        raise QdcError("stdin is closed", help="pipe a dump or its text into it")
    data = sys.stdin.buffer.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise InvalidDump(f"it is larger than {LARGEST >> 20} MiB", where=["stdin"])
    return data
