"""Looking through files of text once, piece by piece: are they text, and where is what.

Memory does not grow with a file, but for eight bytes a line.
"""

import codecs
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

from qdc.disk import open_regular
from qdc.errors import InvalidCalibration
from qdc.jsontext import check_size
from qdc.text.records import HOW, parse_line
from qdc.text.stored import LongText, Stamp

LARGEST_FILE = 1 << 38
"""Bytes of a file that is read piece by piece."""
LONGEST_LINE = 1 << 28
"""Bytes of a line, which is read as a whole."""
PIECE = 1 << 20
MARK = codecs.BOM_UTF8
SHORT = 1 << 16
"""Characters of a line that may hold whatever it likes."""
DECODER = json.JSONDecoder()


class Line(NamedTuple):
    """One line that is not blank."""

    start: int
    """The byte at which it begins."""
    name: str
    """Of the file."""
    number: int
    """From 1."""
    entry: object
    """The record that it holds."""

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.name} line {self.number}"


@contextmanager
def opened(path: Path, most: int = LARGEST_FILE) -> Iterator[BufferedReader]:
    """Open a file of text. Raises InvalidCalibration for what is missing or no regular file."""
    try:
        if path.exists() and not path.is_file():
            raise InvalidCalibration("found no regular file", where=[path.name], help=HOW)
        with open_regular(path, most) as file:
            yield file
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InvalidCalibration:
    """What to say of a file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return InvalidCalibration("there is no such file", where=[str(path)], help=HOW)
    reason = (error.strerror or "unknown reason").lower()
    return InvalidCalibration(f"the file cannot be read: {reason}", where=[path.name], help=HOW)


def scan_text(file: BufferedReader, path: Path) -> tuple[LongText, str]:
    """Look through a file that is one document: the document, and the SHA-256 of the file.

    Raises InvalidCalibration for what is no UTF-8, holds a zero byte, or nothing but white space.
    """
    digest, blank, characters = hashlib.sha256(), True, 0
    stamp = Stamp.of(path, file.fileno())
    rest, start = b"", 0
    mark = len(MARK) if file.peek(len(MARK)).startswith(MARK) else 0
    while piece := file.read(PIECE):
        digest.update(piece)
        data = rest + piece
        text, rest = decode(data, path.name, start, last=False)
        characters += len(text)
        blank = blank and not text.lstrip(MARK.decode()).strip()
        start += len(data) - len(rest)
    decode(rest, path.name, start)
    if blank:
        raise InvalidCalibration("the file holds no text", where=[path.name], help=HOW)
    return LongText(stamp, characters - bool(mark), mark), digest.hexdigest()


def scan_lines(file: BufferedReader, name: str, digest: "hashlib._Hash") -> Iterator[Line]:
    """Look through lines of JSON, and add their bytes to a digest.

    Raises InvalidCalibration, which names the byte or the line, for what is no UTF-8, holds a zero
    byte, or is no JSON.
    """
    start, rest, number, ends = 0, b"", 0, False
    while not ends:
        piece = file.read(PIECE)
        digest.update(piece)
        ends = not piece
        *lines, rest = (rest + piece).split(b"\n")
        for data in (*lines, rest) if ends else lines:
            number += 1
            skipped = len(MARK) if number == 1 and data.startswith(MARK) else 0
            line, _ = decode(data[skipped:], name, start + skipped)
            if line and not line.isspace():
                yield Line(start + skipped, name, number, _parse(line, name, number))
            start += len(data) + 1
        if len(rest) > LONGEST_LINE:
            raise InvalidCalibration(
                f"the line is longer than {LONGEST_LINE >> 20} MiB",
                where=[f"{name} line {number + 1}"],
                help=HOW,
            )


def _parse(line: str, name: str, number: int) -> object:
    """What ``parse_line`` gives, in a third of its time where the line is sound."""
    try:
        if len(line) > SHORT:
            check_size(line)
        entry, end = DECODER.raw_decode(line)
        if end == len(line) or line[end:].isspace():
            return entry
    except (ValueError, RecursionError):
        pass
    return parse_line(line, f"{name} line {number}")


def decode(data: bytes, name: str, start: int = 0, *, last: bool = True) -> tuple[str, bytes]:
    """Read UTF-8. Raises InvalidCalibration for what is none, and for a zero byte, naming the byte.

    Args:
        data: the bytes.
        name: of the file.
        start: where in it they stand.
        last: whether nothing follows; else the last character may be cut.

    Returns:
        The text, and the bytes of a character that is cut.
    """
    if b"\0" in data:
        zero = start + data.index(b"\0")
        raise InvalidCalibration(f"byte {zero} is zero, this is no text", where=[name], help=HOW)
    try:
        return data.decode(), b""
    except UnicodeDecodeError as error:
        cut = error.reason == "unexpected end of data" and error.end == len(data)
        if cut and not last:
            return data[: error.start].decode(), data[error.start :]
        raise InvalidCalibration(
            f"byte {start + error.start} is not UTF-8", where=[name], help=HOW
        ) from error
