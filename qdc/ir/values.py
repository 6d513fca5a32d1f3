"""Exact values on one line: JSON, and beside it bytes, infinities and every NaN.

    {"name": "h0.q", "shape": [4, 512], "drift": 0.25, "raw": hex"ff00", "rest": [null, true, inf]}

What ``read_fields`` takes is a stranger's: nesting, numbers and the count of containers are
bounded, a key stands once, and a mistake is named with its column.
"""

import json
import math
import re
import struct
from collections.abc import Mapping
from typing import Any

from qdc.errors import QdcError

DEEPEST = 48
FREE, LEAST_CHARACTERS = 1000, 6
"""Characters that a list or a map takes on average, at the least, once there are many of them: an
empty one is two characters, and in memory more than sixty bytes."""
LONGEST_NUMBER = 32
LOWEST, HIGHEST = -(1 << 63), (1 << 64) - 1
"""Integers of the binary dump."""
_TOKEN = re.compile(
    r"""\ *(?:(?P<mark>[\[\]{},:])|(?P<prefix>hex|nan)?(?P<text>"[^"\\]*(?:\\.[^"\\]*)*")"""
    r"""|(?P<word>[\w.+-]+))""",
    re.VERBOSE,
)
_WORDS = {"null": None, "true": True, "false": False}
_INTEGER = re.compile(r"-?[0-9]+")
_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?|inf)|nan")


class Misread(ValueError):
    """Text that does not say what it should: what is wrong, and the character where it is."""

    def __init__(self, what: str, place: int = 0) -> None:
        """Keep both; ``place`` counts from the start of the line."""
        super().__init__(what)
        self.what, self.place = what, place


def write_value(value: object) -> str:
    """One value as text. Raises ``QdcError`` for one that a dump cannot hold either."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int) and LOWEST <= value <= HIGHEST:
        return int.__repr__(value)
    if isinstance(value, float):
        return _nan_text(value) if math.isnan(value) else float.__repr__(value)
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, bytes):
        return f'hex"{value.hex()}"'
    if isinstance(value, Mapping):
        items = (f"{json.dumps(str(key))}: {write_value(item)}" for key, item in value.items())
        return f"{{{', '.join(items)}}}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(write_value, value))}]"
    raise QdcError(
        f"the text of the IR cannot hold a {type(value).__name__}",
        help="annotate with numbers, texts, bytes, lists, maps and tensor references",
    )


def read_fields(line: str, start: int = 0) -> dict[str, Any]:
    """Read ``{"name": value, ...}`` from ``start`` to the end of a line. Raises ``Misread``."""
    reader = _Reader(line, start)
    mark = reader.next()
    if mark != "{":
        raise Misread("expected '{'", start)
    fields = reader.map(DEEPEST)
    if line[reader.place :].strip():
        raise Misread("expected the end of the line", reader.place)
    return fields


class _Reader:
    def __init__(self, line: str, start: int) -> None:
        self.line, self.place = line, start
        self.start = start
        self.left = FREE + (len(line) - start) // LEAST_CHARACTERS
        self.found: re.Match[str] | None = None

    def next(self) -> str:
        """Take one token; its mark, or nothing if it is a value."""
        self.found = _TOKEN.match(self.line, self.place)
        if self.found is None:
            raise Misread("expected a value, or one of [ ] { } , :", self.place)
        mark = self.found["mark"]
        self.start = self.found.end() - len(self.found[0].lstrip(" "))
        self.place = self.found.end()
        return mark or ""

    def value(self, mark: str, depth: int) -> Any:
        if mark == "{":
            return self.map(depth)
        if mark == "[":
            return self.list(depth)
        if mark:
            raise Misread("expected a value", self.start)
        assert self.found is not None
        text, prefix = self.found["text"], self.found["prefix"]
        if text is None:
            return self.word(self.found["word"])
        if prefix == "hex":
            return self.bytes(text[1:-1])
        return self.nan(text[1:-1]) if prefix else self.text(text)

    def map(self, depth: int) -> dict[str, Any]:
        self.count(depth)
        fields: dict[str, Any] = {}
        mark = self.next()
        while mark != "}":
            assert self.found is not None
            if self.found["text"] is None or self.found["prefix"]:
                raise Misread('expected a name in quotes, or "}"', self.start)
            key, at = self.text(self.found["text"]), self.start
            if key in fields:
                raise Misread(f"{key} is given twice", at)
            if self.next() != ":":
                raise Misread("expected ':'", self.start)
            fields[key] = self.value(self.next(), depth - 1)
            mark = self.separated("}")
        return fields

    def list(self, depth: int) -> list[Any]:
        self.count(depth)
        items: list[Any] = []
        mark = self.next()
        while mark != "]":
            items.append(self.value(mark, depth - 1))
            mark = self.separated("]")
        return items

    def separated(self, closing: str) -> str:
        """Take ``,`` and the token behind it, or the closing mark."""
        mark = self.next()
        if mark == closing:
            return mark
        if mark != ",":
            raise Misread(f"expected ',' or '{closing}'", self.start)
        mark = self.next()
        if mark == closing:
            raise Misread("expected a value after ','", self.start)
        return mark

    def count(self, depth: int) -> None:
        self.left -= 1
        if depth == 0:
            raise Misread(f"nested deeper than {DEEPEST}", self.start)
        if self.left < 0:
            raise Misread("more lists and maps than an annotation can have", self.start)

    def word(self, word: str) -> Any:
        if word in _WORDS:
            return _WORDS[word]
        if len(word) <= LONGEST_NUMBER:
            if _INTEGER.fullmatch(word):
                number = int(word)
                if LOWEST <= number <= HIGHEST:
                    return number
                raise Misread("a whole number of more than 64 bits", self.start)
            if _FLOAT.fullmatch(word):
                return float(word)
        raise Misread("expected a number, a text in quotes, null, true or false", self.start)

    def text(self, quoted: str) -> str:
        try:
            found: str = json.loads(quoted)
            found.encode()
        except ValueError as error:
            raise Misread("the text in quotes is not one of JSON", self.start) from error
        return found

    def bytes(self, digits: str) -> bytes:
        if not re.fullmatch(r"(?:[0-9a-f]{2})*", digits):
            raise Misread("expected bytes as pairs of the digits 0..9 a..f", self.start)
        return bytes.fromhex(digits)

    def nan(self, digits: str) -> float:
        if re.fullmatch(r"[0-9a-f]{16}", digits):
            number: float = struct.unpack(">d", bytes.fromhex(digits))[0]
            if math.isnan(number):
                return number
        raise Misread("expected the sixteen digits of a NaN", self.start)


def _nan_text(number: float) -> str:
    """``nan``; one of other bits with all of them, as dumps keep them too."""
    bits = struct.pack(">d", number)
    return "nan" if bits == struct.pack(">d", float("nan")) else f'nan"{bits.hex()}"'
