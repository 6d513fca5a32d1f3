"""The grammar of pipelines, parsed into names and option texts.

    pipeline ::= item (',' item)*
    item     ::= step | 'stages' options? '(' step (',' step)* ')'
    step     ::= name options?
    options  ::= '{' key '=' value (',' value)* (' ' key '=' ...)* '}'

Backends and strategies share the form of one item. A list of pipelines is items as well, and each
may have a label in front: ``label=item``. Errors point at the place with a caret.
"""

import re
from dataclasses import dataclass, field
from typing import NamedTuple

from qdc.errors import InvalidPipeline

STAGES = "stages"
_NAME = re.compile(r"[A-Za-z][\w-]*")
_VALUE = re.compile(r"[^\s,{}()\"=]+")
_LABEL = re.compile(r"([^\s,{}()=\"][^,{}()=\"]*?)\s*=")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Item:
    """A pass, preset, backend or strategy as written: its name, its options, where it stands."""

    name: str
    place: int
    options: dict[str, str | tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class StagesItem:
    """``stages(...)``: what is inside runs stage by stage."""

    place: int
    items: tuple[Item, ...]
    options: dict[str, str | tuple[str, ...]] = field(default_factory=dict)


class Labelled(NamedTuple):
    """An item of a list of pipelines: its label or nothing, and how it is written without it."""

    label: str
    item: Item | StagesItem
    text: str


def parse(text: str) -> tuple[Item | StagesItem, ...]:
    """Parse pipeline text. Raises ``InvalidPipeline`` with a caret under the mistake."""
    reader = _Reader(text)
    items = reader.pipeline()
    reader.expect_end()
    return items


def parse_item(text: str, kind: str = "pass") -> Item:
    """Parse ``name{options}``, the form of a backend and of a strategy.

    ``kind`` is what messages call it. Raises ``InvalidPipeline``.
    """
    reader = _Reader(text, kind)
    item = reader.step()
    reader.expect_end()
    return item


def parse_list(text: str) -> tuple[Labelled, ...]:
    """Parse the items of several pipelines. Raises ``InvalidPipeline`` as ``parse``."""
    reader = _Reader(text)
    items = [reader.labelled()]
    while reader.take(","):
        items.append(reader.labelled())
    reader.expect_end()
    return tuple(items)


def is_name(text: str) -> bool:
    """Whether pipeline text can name a pass so."""
    return _NAME.fullmatch(text) is not None


def caret(text: str, place: int) -> str:
    """Show where in ``text`` something is, on two lines under a ``help`` label."""
    flat = re.sub(r"\s", " ", text)
    return f"\n        {flat}\n        {' ' * place}^"


class _Reader:
    def __init__(self, text: str, kind: str = "pass") -> None:
        self.text, self.kind = text, kind
        self.place = 0

    def pipeline(self) -> tuple[Item | StagesItem, ...]:
        items = [self.item()]
        while self.take(","):
            items.append(self.item())
        return tuple(items)

    def labelled(self) -> Labelled:
        self.skip()
        found = _LABEL.match(self.text, self.place)
        if found is not None:
            self.place = found.end()
        start = self.skip()
        item = self.item()
        return Labelled(found.group(1) if found else "", item, self.text[start : self.place])

    def item(self) -> Item | StagesItem:
        start = self.skip()
        options = self.opens_stages()
        if options is None:
            return self.step()
        inside = [self.inner()]
        while self.take(","):
            inside.append(self.inner())
        if not self.take(")"):
            raise self.error("expected ',' or ')'")
        return StagesItem(start, tuple(inside), options)

    def inner(self) -> Item:
        start = self.skip()
        if self.opens_stages() is not None:
            raise self.error("stages(...) cannot be nested", at=start)
        return self.step()

    def opens_stages(self) -> dict[str, str | tuple[str, ...]] | None:
        """Take ``stages(`` or ``stages{...}(`` and give the options; None if neither is there."""
        start = self.place
        if self.take(STAGES):
            options = self.options() if self.take("{") else {}
            if self.take("("):
                return options
        self.place = start
        return None

    def step(self) -> Item:
        start = self.skip()
        name = self.match(_NAME, f"a {self.kind} name")
        return Item(name, start, self.options() if self.take("{") else {})

    def options(self) -> dict[str, str | tuple[str, ...]]:
        found: dict[str, str | tuple[str, ...]] = {}
        while not self.take("}"):
            start = self.skip()
            key = self.match(_NAME, "an option name or '}'")
            if key in found:
                raise self.error(f"option {key} is given twice", at=start)
            if not self.take("="):
                raise self.error("expected '='")
            values = [self.value()]
            while self.take(","):
                values.append(self.value())
            found[key] = values[0] if len(values) == 1 else tuple(values)
        return found

    def value(self) -> str:
        self.skip()
        quoted = _QUOTED.match(self.text, self.place)
        if quoted:
            self.place = quoted.end()
            return re.sub(r"\\(.)", r"\1", quoted.group(1))
        return self.match(_VALUE, "a value")

    def match(self, pattern: re.Pattern[str], wanted: str) -> str:
        self.skip()
        found = pattern.match(self.text, self.place)
        if found is None:
            raise self.error(f"expected {wanted}")
        self.place = found.end()
        return found.group()

    def take(self, mark: str) -> bool:
        self.skip()
        if not self.text.startswith(mark, self.place):
            return False
        self.place += len(mark)
        return True

    def skip(self) -> int:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1
        return self.place

    def expect_end(self) -> None:
        if self.skip() < len(self.text):
            raise self.error("expected ',' or the end")

    def error(self, what: str, at: int | None = None) -> InvalidPipeline:
        place = self.place if at is None else at
        whole = "pipeline" if self.kind == "pass" else self.kind
        return InvalidPipeline(f"the {whole} does not parse: {what}", help=caret(self.text, place))
