"""Text for calibration and evaluation: a file of the user's, or the one that travels with qdc."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from qdc.errors import InvalidCalibration, nearest

EMBEDDED = "embedded"
DEFAULT_FIELD = "text"
HOW = "give a UTF-8 text file, or a .jsonl file with one object a line"


class TextSource(NamedTuple):
    """Documents and where they come from.

    ``name`` is a file's name without its folder, or ``embedded``; ``digest`` is the SHA-256 of the
    file's bytes in hexadecimal.
    """

    name: str
    digest: str
    documents: tuple[str, ...]


def read_text(path: Path | None, field: str = DEFAULT_FIELD) -> TextSource:
    """Read documents; ``None`` stands for the embedded text.

    A ``.jsonl`` file holds one object a line, whose ``field`` is a document; blank lines do not
    count. Any other file is one document. Nothing but white space is no document. Raises
    InvalidCalibration for a file that is missing, unreadable, not UTF-8 text or without a document.
    """
    is_lines = path is not None and path.suffix.lower() == ".jsonl"
    if field != DEFAULT_FIELD and not is_lines:
        raise InvalidCalibration(
            f"field {field!r} is asked of text that has no fields",
            where=[EMBEDDED if path is None else path.name],
            help="give --text-field together with a .jsonl file",
        )
    if path is None:
        data = (files("qdc") / "data" / "calibration.jsonl").read_bytes()
        return _source(EMBEDDED, data, tuple(_lines(data.decode(), EMBEDDED, "text")))
    data = _bytes(path)
    text = _decode(data, path.name)
    return _source(path.name, data, tuple(_lines(text, path.name, field)) if is_lines else (text,))


def _source(name: str, data: bytes, documents: tuple[str, ...]) -> TextSource:
    filled = tuple(document for document in documents if not document.isspace() and document)
    if not filled:
        raise InvalidCalibration("the file holds no text", where=[name], help=HOW)
    return TextSource(name, hashlib.sha256(data).hexdigest(), filled)


def _bytes(path: Path) -> bytes:
    if path.is_dir():
        raise InvalidCalibration("found a folder, need a file", where=[path.name], help=HOW)
    if path.exists() and not path.is_file():
        raise InvalidCalibration("found no regular file", where=[path.name], help=HOW)
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise InvalidCalibration("there is no such file", where=[str(path)], help=HOW) from None
    except OSError as error:
        reason = (error.strerror or "unknown reason").lower()
        raise InvalidCalibration(
            f"the file cannot be read: {reason}", where=[path.name], help=HOW
        ) from error


def _decode(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidCalibration(
            f"byte {error.start} is not UTF-8", where=[name], help=HOW
        ) from error
    if "\0" in text:
        raise InvalidCalibration(
            f"byte {data.index(0)} is zero, this is no text", where=[name], help=HOW
        )
    return text


def _lines(text: str, name: str, field: str) -> list[str]:
    return [
        _document(line, f"{name} line {number}", field)
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip()
    ]


def _document(line: str, place: str, field: str) -> str:
    try:
        entry: object = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidCalibration(
            f"no valid JSON at column {error.colno}: {error.msg.lower()}", where=[place], help=HOW
        ) from error
    except (ValueError, RecursionError) as error:
        raise InvalidCalibration("no JSON that can be read", where=[place], help=HOW) from error
    if not isinstance(entry, dict):
        raise InvalidCalibration(
            f"found {_kind(entry)}, need an object with the field '{field}'",
            where=[place],
            help=f'write each line as {{"{field}": "..."}}',
        )
    if field not in entry:
        raise InvalidCalibration(
            f"the field '{field}' is missing", where=[place], help=nearest(field, entry)
        )
    document = entry[field]
    if not isinstance(document, str):
        raise InvalidCalibration(
            f"the field '{field}' holds {_kind(document)}, need text",
            where=[place],
            help="name the field that holds the text",
        )
    try:
        document.encode()
    except UnicodeEncodeError as error:
        raise InvalidCalibration(
            f"the field '{field}' holds half a surrogate pair at character {error.start}",
            where=[place],
            help="write the text as UTF-8, or both halves as \\u escapes",
        ) from error
    return document


def _kind(value: object) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    return "null" if value is None else kinds.get(type(value), "a number")
