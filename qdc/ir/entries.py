"""Lines of a text that is read, and what is said about each in an error."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from qdc.errors import InvalidText
from qdc.ir.values import Misread, read_fields
from qdc.jsontext import model_of

EXCERPT = 100
"""Characters of a line that an error shows."""
T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Line:
    """A line of the text."""

    number: int
    text: str

    def error(self, what: str, place: int = 0) -> InvalidText:
        """What is wrong, with the line and a caret under the character at ``place``."""
        start = max(0, min(place - EXCERPT // 2, len(self.text) - EXCERPT))
        shown = self.text[start : start + EXCERPT]
        plain = "".join(c if c.isprintable() else "?" for c in shown)
        return InvalidText(
            f"the text of the IR does not parse: {what}",
            where=[f"line {self.number}, column {place + 1}"],
            help=f"\n        {plain}\n        {' ' * (place - start)}^",
        )

    def read(self, reader: Callable[..., T], *arguments: Any) -> T:
        """What a reader makes of the line. Raises ``InvalidText`` where it is misread."""
        try:
            return reader(self.text, *arguments)
        except Misread as error:
            raise self.error(error.what, error.place) from error

    def checked(self, make: Callable[[], T]) -> T:
        """What ``make`` gives. Raises ``InvalidText`` with this line if a class refuses a field."""
        try:
            return make()
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            start = len(self.text) - len(self.text.lstrip(" "))
            raise self.error(
                f"{place}: {first['msg']}" if place else first["msg"], start
            ) from error


@dataclass
class Entry:
    """A line with what it is about, and the line of exact fields below it, if there is one."""

    line: Line
    exact: Line | None = None
    notes: list["Entry"] = field(default_factory=list)
    """Of a node: its annotations."""
    first: int = 0
    """Of a region: the place of the node behind it."""

    def fields(self) -> dict[str, Any]:
        """The exact fields."""
        if self.exact is None:
            return {}
        return self.exact.read(read_fields, len(self.exact.text) - len(self.exact.text.lstrip(" ")))

    def made(self, kind: type[M], data: dict[str, Any]) -> M:
        """An object of a pydantic class from what the line says and from the exact fields."""
        fields = self.fields()
        return (self.exact or self.line).checked(lambda: model_of(kind, {**data, **fields}))
