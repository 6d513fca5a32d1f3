"""Files whose records are text themselves: lines of JSON, an array of JSON, tables of cells."""

import csv
import io
import json
from collections.abc import Iterator
from typing import NoReturn

from qdc.errors import InvalidCalibration
from qdc.jsontext import UnfitJson, parse_json
from qdc.text.records import HOW, parse_line

LINES, JSON = ".jsonl", ".json"
CELLS = {".csv": ",", ".tsv": "\t"}
"""Suffixes of tables, with what stands between two cells."""

KINDS = (LINES, JSON, *CELLS)
"""Suffixes of files with records."""

LONGEST_CELL = (1 << 31) - 1
"""Characters; the csv module of Python stops at 131,072 unless told otherwise."""


def read_entries(kind: str, text: str, name: str) -> Iterator[tuple[str, object]]:
    """The records of a file, each with its place. Raises InvalidCalibration for what is none.

    Args:
        kind: one of ``KINDS``.
        text: what the file holds.
        name: of the file.
    """
    if kind == LINES:
        return _of_lines(text, name)
    return _of_json(text, name) if kind == JSON else _of_cells(text, name, CELLS[kind])


def _of_lines(text: str, name: str) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            place = f"{name} line {number}"
            yield place, parse_line(line, place)


def _of_json(text: str, name: str) -> Iterator[tuple[str, object]]:
    """An array of records, one record, or one a line, as ``.json`` is used for all of them."""
    try:
        whole: object = parse_json(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" or not text.strip():
            yield from _of_lines(text, name)
            return
        place = f"{name} line {error.lineno}"
        _refuse(f"no valid JSON at column {error.colno}: {error.msg.lower()}", place)
    except UnfitJson as error:
        if not text.lstrip().startswith("["):  # each line may be within the bounds
            yield from _of_lines(text, name)
            return
        _refuse(f"the JSON {error}; a .jsonl file may have as much in each of its lines", name)
    except ValueError:
        _refuse("no JSON that can be read", name)
    for number, entry in enumerate(whole if isinstance(whole, list) else [whole], 1):
        yield f"{name} record {number}", entry


def _of_cells(text: str, name: str, between: str) -> Iterator[tuple[str, object]]:
    """Rows under a row of names; a cell without anything in it is null."""
    usual = csv.field_size_limit(LONGEST_CELL)
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, strict=True)
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        _refuse(f"no table that can be read: {error}", name)
    finally:
        csv.field_size_limit(usual)
    if not rows:
        return
    (_, names), *filled = rows
    twice = sorted({each for each in names if names.count(each) > 1})
    if twice:
        _refuse(f"the first row has the name {twice[0]!r} more than once", name)
    for line, row in filled:
        if len(row) != len(names):
            _refuse(f"found {len(row)} cells, need {len(names)}", f"{name} line {line}")
        yield (
            f"{name} line {line}",
            {each: cell or None for each, cell in zip(names, row, strict=True)},
        )


def _refuse(what: str, place: str) -> NoReturn:
    raise InvalidCalibration(what, where=[place], help=HOW) from None
