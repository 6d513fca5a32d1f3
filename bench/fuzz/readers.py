"""Everything in qdc that reads a file which somebody else may have written.

A reader returns whether it took the folder; anything but a refusal as documented is a failure and
leaves through here as an exception.
"""

import contextlib
import io
import runpy
from collections.abc import Callable
from pathlib import Path

import qdc
from bench.common.processes import ROOT
from qdc.artifact.journal import read_journal
from qdc.artifact.writer import check_target
from qdc.cli import run
from qdc.errors import OutputExists, QdcError, printable
from qdc.text.source import read_text

Reader = Callable[[Path], bool]
EXAMPLE = ROOT / "examples" / "read_artifact.py"
LONGEST_MESSAGE = 20_000


class Misread(Exception):
    """A reader did not do what it promises."""


def _refused(error: QdcError) -> bool:
    """Not taken; its message must be fit to be read."""
    text = str(error)
    if len(text) > LONGEST_MESSAGE:
        raise Misread(f"a message of {len(text)} characters")
    if printable(text) != text:
        raise Misread(f"a message that steers the terminal: {ascii(text)[:300]}")
    return False


def _load(folder: Path) -> bool:
    try:
        qdc.load(folder)
    except QdcError as error:
        return _refused(error)
    return True


def _command(*arguments: str) -> Reader:
    """The command line in this process: exit code 0 or 1, no traceback."""

    def read(folder: Path) -> bool:
        given = [part.replace("FOLDER", str(folder)) for part in arguments]
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            code = run(given)
        if arguments[0] == "show" and printable(out.getvalue()) != out.getvalue():
            raise Misread(f"text that steers the terminal: {ascii(out.getvalue())[:1500]}")
        if code not in (0, 1) or "Traceback" in error.getvalue():
            raise Misread(f"{arguments[0]} ended with {code}: {error.getvalue()[-1500:]}")
        return code == 0

    return read


def _example() -> Reader:
    decode = runpy.run_path(str(EXAMPLE))["read"]

    def read(folder: Path) -> bool:
        try:
            decode(folder)
        except (ValueError, OSError):
            return False
        return True

    return read


def _journal(folder: Path) -> bool:
    try:
        return read_journal(folder) is not None
    except QdcError as error:
        return _refused(error)


def _target(folder: Path) -> bool:
    try:
        check_target(folder, force=True)
    except OutputExists as error:
        return _refused(error)
    return True


def _text(folder: Path) -> bool:
    """The file of a folder, or the folder of a dataset, read to the last record."""
    path = folder / "text.jsonl" if (folder / "state.json").exists() is False else folder
    try:
        source = read_text(path)
        return sum(map(len, source.documents)) >= 0
    except QdcError as error:
        return _refused(error)


READERS: dict[str, Reader] = {
    "load": _load,
    "run": _command("run", "FOLDER", "for i <mask> in"),
    "show": _command("show", "FOLDER"),
    "verify": _command("verify", "FOLDER"),
    "report": _command("report", "FOLDER", "--json"),
    "page": _command("report", "FOLDER", "--out", "FOLDER/page.html"),
    "example": _example(),
    "target": _target,
    "journal": _journal,
    "text": _text,
}
