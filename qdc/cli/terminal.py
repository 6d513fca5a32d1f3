"""Tables on stdout; progress, which is on stderr, is in ``progress``."""

import json
import os
import re
import sys

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from qdc.cli.progress import progress
from qdc.errors import QdcError
from qdc.units import size

__all__ = [
    "at_commas",
    "console",
    "given_text",
    "print_json",
    "print_lines",
    "print_pipeline",
    "print_table",
    "progress",
    "size",
    "table",
    "tell_left_out",
    "tell_withheld",
]

WIDTH = 100
BETWEEN_PASSES = re.compile(r"(?:\{[^}]*\}|[^,{])+,?|.")
"""A part of a pipeline up to a comma, which in braces is one between the values of an option."""


class _Output(Console):
    """Leaves the end of a command to the command line, which knows whether a reader has left."""

    def on_broken_pipe(self) -> None:
        """Let ``BrokenPipeError`` go on, as of any other writer; rich would end the process."""
        raise  # it is being handled where this is called


def console() -> Console:
    """Stdout, as wide as ``COLUMNS`` says or the terminal is; a file gets a fixed width."""
    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() and int(columns) else None
    if width is None and not sys.stdout.isatty():
        width = WIDTH
    return _Output(width=width, highlight=False, soft_wrap=False, emoji=False)


def print_table(to: Console, rows: RenderableType) -> None:
    """Print a table; away from a terminal its lines end where their text ends."""
    if to.is_terminal:
        to.print(rows)
        return
    with to.capture() as caught:
        to.print(rows)
    print_lines(to, *(line.rstrip() for line in caught.get().splitlines()))


def given_text(argument: str) -> str:
    """The text of an argument, or what stdin holds for ``-``. Raises ``QdcError`` if unreadable."""
    if argument == "-" and sys.stdin is None:
        raise QdcError("stdin is closed", help="pipe a text into it, or give the text itself")
    try:
        text = sys.stdin.read() if argument == "-" else argument
        text.encode()  # bytes that are no text come as lone surrogates in some locales
    except UnicodeError as error:
        where = "stdin" if argument == "-" else "the argument"
        raise QdcError(
            f"the text is not UTF-8: {error}", where=[where], help="convert it first"
        ) from error
    return text


def print_lines(to: Console, *lines: str) -> None:
    """Print lines as they are, however long: nothing is wrapped, cut or read as markup."""
    for line in lines:
        to.print(line, markup=False, soft_wrap=True)


def at_commas(pipeline: str, width: int) -> list[str]:
    """Lines of a pipeline's text, broken behind commas between passes where it is too long.

    What is put together again is the same pipeline: it may stand over several lines.
    """
    lines = [""]
    for part in BETWEEN_PASSES.findall(pipeline):
        if lines[-1] and len(lines[-1]) + len(part) > width:
            lines.append("")
        lines[-1] += part
    return lines


def print_pipeline(to: Console, label: str, pipeline: str) -> None:
    """Print a pipeline behind its label; on a terminal it is broken at its commas, none else."""
    lines = at_commas(pipeline, to.width - len(label)) if to.is_terminal else [pipeline]
    indent = " " * len(label)
    print_lines(to, *(f"{indent if at else label}{line}" for at, line in enumerate(lines)))


def tell_left_out(name: str, left_out: str) -> None:
    """Say on stderr which part of the text of this name is not used, if any."""
    if left_out:
        print(f"{name}: {left_out} and are left out", file=sys.stderr)


def tell_withheld(withheld: str) -> None:
    """Say on stderr which special tokens of the tokenizer are not put around texts, if any."""
    if withheld:
        print(withheld, file=sys.stderr)


def table(title: str, *columns: str, right: tuple[int, ...] = ()) -> Table:
    """A plain table; ``right`` are the places of the columns of numbers."""
    made = Table(
        title=Text(title, style="bold", no_wrap=True, overflow="ignore"),
        title_justify="left",
        box=None,
        pad_edge=False,
        show_header=any(columns),
    )
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place in right else "left", overflow="fold")
    return made


def print_json(data: object) -> None:
    """Print data as JSON on stdout."""
    sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
