"""Tables that can be printed for people or as markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Console
from rich.measure import Measurement

from qdc.cli.terminal import print_lines, print_table, table
from qdc.evaluation.bootstrap import Interval
from qdc.ir.text_use import TextUse

WIDEST = 1000


class Sheet(NamedTuple):
    """One table; ``right`` are the places of the columns of numbers, ``notes`` stand below."""

    title: str
    columns: tuple[str, ...]
    right: tuple[int, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def print_sheet(to: Console, sheet: Sheet, *, markdown: bool = False) -> None:
    """Print a table and its notes."""
    if markdown:
        print_lines(to, *_markdown(sheet))
        return
    rows = table(sheet.title, *sheet.columns, right=sheet.right)
    for row in sheet.rows:
        rows.add_row(*row)
    width = to.width
    if not to.is_terminal:  # nothing is cut in a file, so nothing needs to be folded
        options = to.options.update(max_width=WIDEST)
        to.width = max(width, Measurement.get(to, options, rows).maximum)
    print_table(to, rows)
    to.width = width
    print_lines(to, *(("", *sheet.notes) if sheet.notes else ()))


def spread(ends: Interval | None, form: str = "+.4f") -> str:
    """An interval as text; nothing where there is none."""
    return "" if ends is None else f"{ends[0]:{form}} .. {ends[1]:{form}}"


def _markdown(sheet: Sheet) -> list[str]:
    rule = ["---:" if place in sheet.right else "---" for place in range(len(sheet.columns))]
    rows = [sheet.columns, rule, *sheet.rows]
    lines = ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    notes = [f"\n{note}" for note in sheet.notes]
    return [f"{sheet.title}\n", *lines, *notes]


def text_lines(text: TextUse | None) -> tuple[str, ...]:
    """What windows were made of, and what the user should change about that."""
    if text is None:
        return ()
    said = (f"text: {line}" for line in (*text.said, *text.notes))
    return (*said, *(f"warning: {line}" for line in text.warnings))
