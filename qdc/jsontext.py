"""JSON that somebody else has written: parsed, unless it would take more memory than it is worth.

A text of 20 MiB can hold seven million empty objects, which take more than a gigabyte. So it is
counted before it is parsed: what opens a list or an object, and the commas between values.
"""

import json
import re
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel, ValidationError

M = TypeVar("M", bound=BaseModel)

DEEPEST = 100
"""Lists and objects inside one another."""


class Bounds(NamedTuple):
    """What a text may hold at most."""

    containers: int
    """Lists and objects."""
    values: int
    """Whatever stands between two commas, counted together with the lists and objects."""


BOUNDS = Bounds(1 << 18, 1 << 20)
"""A hundred thousand layers fit. With 32 MiB of text, parsing takes less than 512 MiB."""
TOKENIZER_BOUNDS = Bounds(1 << 21, 1 << 23)
"""Merges are pairs, of which the largest vocabularies have half a million."""

# Without a way back, so that a quote which nothing closes costs one walk to the end.
_QUOTED = r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)'
_IN_TEXT = re.compile(_QUOTED, re.DOTALL)
_IN_BYTES = re.compile(_QUOTED.encode(), re.DOTALL)


class UnfitJson(ValueError):
    """JSON that is not taken; the message goes on behind the name of its file."""


def parse_json(text: str | bytes, bounds: Bounds = BOUNDS) -> Any:
    """Parse a text of JSON; bytes are UTF-8.

    Args:
        text: whatever it may be; its size is bounded by whoever has read it.
        bounds: what it may hold.

    Raises:
        UnfitJson: it holds more than the bounds allow, is nested more than ``DEEPEST`` deep, or
            gives one name of an object two values, of which every reader would take its own.
        ValueError: it is no JSON: ``json.JSONDecodeError``, ``UnicodeDecodeError``.
    """
    check_size(text, bounds)
    plain = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        found = json.loads(plain, object_pairs_hook=_unambiguous)
    except RecursionError as error:
        raise _too_deep() from error
    _check_depth(found)
    return found


def model_of(kind: type[M], data: object) -> M:
    """A pydantic model of data as a file has it, where no value stands for one of another type.

    A text is no number, and neither is a truth value; lists stand for tuples, as JSON has no other.

    Raises:
        ValidationError: the data, which may be no JSON at all, is not what the model says.
    """
    try:
        return kind.model_validate_json(json.dumps(data), strict=True)
    except (TypeError, ValueError) as error:
        if isinstance(error, ValidationError) and error.errors()[0]["type"] != "json_invalid":
            raise
    # It is no JSON: bytes, half a character, a number of thousands of digits, too deep a list.
    return kind.model_validate(data, strict=True)


def check_size(text: str | bytes, bounds: Bounds = BOUNDS) -> None:
    """Count what a text would become, without parsing it. Raises ``UnfitJson``.

    For whoever parses it by other means; of a text that is no JSON the count means nothing.
    """
    opened, commas = _count(text, 0, len(text))
    if _fits(opened, commas, bounds):
        return
    opened = commas = end = 0
    quoted = _IN_BYTES.finditer(text) if isinstance(text, bytes) else _IN_TEXT.finditer(text)
    for string in quoted:  # brackets and commas in a text are text
        more = _count(text, end, string.start())
        opened, commas, end = opened + more[0], commas + more[1], string.end()
        _refuse(opened, commas, bounds)
    more = _count(text, end, len(text))
    _refuse(opened + more[0], commas + more[1], bounds)


def _count(text: str | bytes, start: int, end: int) -> tuple[int, int]:
    """What opens lists and objects, and commas, between two places."""
    if isinstance(text, bytes):
        opened = text.count(b"[", start, end) + text.count(b"{", start, end)
        return opened, text.count(b",", start, end)
    opened = text.count("[", start, end) + text.count("{", start, end)
    return opened, text.count(",", start, end)


def _fits(opened: int, commas: int, bounds: Bounds) -> bool:
    return opened <= bounds.containers and opened + commas <= bounds.values


def _refuse(opened: int, commas: int, bounds: Bounds) -> None:
    if opened > bounds.containers:
        raise UnfitJson(f"holds more than {bounds.containers:,} lists and objects")
    if not _fits(opened, commas, bounds):
        raise UnfitJson(f"holds more than {bounds.values:,} values")


def _check_depth(found: Any) -> None:
    level, depth = [found], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            raise _too_deep()
        inside = (each.values() if isinstance(each, dict) else each for each in level)
        level = [value for values in inside for value in values]


def _too_deep() -> UnfitJson:
    return UnfitJson(f"is nested more than {DEEPEST} deep")


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if found[name] != value:
                raise UnfitJson(f"gives {name!r} two values")
    return found
