"""Passes, backends and strategies as plain data, for tables, ``--json`` and the generated pages."""

import inspect
import sys
from typing import Any, NamedTuple

from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from qdc.pipeline.passbase import Configured, Kinds, Pass, option_text, summary

NAMES = {"integer": "integer", "number": "number", "boolean": "true | false"}
BOUNDS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
LARGE = 1 << 17


class Option(NamedTuple):
    """One option of a pass, a backend or a strategy."""

    name: str
    values: str
    """What it takes: ``integer >= 1``, ``stage | layer``."""
    required: bool
    default: object
    """As JSON has it; None too where the option is required."""
    help: str

    @property
    def default_text(self) -> str:
        """The default as pipeline text has it."""
        return "required" if self.required else option_text(self.default)


class Described(NamedTuple):
    """A pass, a backend or a strategy."""

    name: str
    summary: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    whole_model: bool | None
    """Whether it needs all layers at once; None for what is no pass."""
    calibration: bool | None
    """Whether it reads calibration text; None for what is no pass."""
    options: tuple[Option, ...]
    text: str
    """The docstring of its module: source, and the IR before and after."""

    def as_data(self) -> dict[str, object]:
        """Ready for JSON, without what does not apply."""
        options = [option._asdict() for option in self.options]
        known = {key: value for key, value in self._asdict().items() if value is not None}
        return {**known, "options": options}


def describe(kind: type[Configured]) -> Described:
    """Read the class."""
    properties = kind.model_json_schema()["properties"] if kind.model_fields else {}
    return Described(
        name=kind.name,
        summary=summary(kind),
        reads=tuple(tags(getattr(kind, "requires", ()))),
        writes=tuple(tags((*getattr(kind, "provides", ()), *getattr(kind, "annotates", ())))),
        whole_model=kind.barrier if issubclass(kind, Pass) else None,
        # Where the options decide, it may.
        calibration=bool(kind.reads_calibration) if issubclass(kind, Pass) else None,
        options=tuple(
            Option(
                name.replace("_", "-"),
                _values(properties[name]),
                field.is_required(),
                _default(field),
                field.description or "",
            )
            for name, field in kind.model_fields.items()
            if name not in getattr(kind, "unread", ())
        ),
        text=inspect.cleandoc(sys.modules[kind.__module__].__doc__ or ""),
    )


def tags(kinds: Kinds) -> list[str]:
    """The names of annotations as the text form has them; a base class has its slot's name."""
    return [kind.tag if hasattr(kind, "tag") else kind.slot_name() for kind in kinds]


def _default(field: FieldInfo) -> object:
    if field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))


def _values(schema: dict[str, Any]) -> str:
    """Say what an option takes, from its JSON schema."""
    if "anyOf" in schema:
        found = [_values(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(found)
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    if schema.get("type") == "array":
        return f"{_values(schema.get('items', {}))}, ..."
    text = NAMES.get(str(schema.get("type")), "text")
    limits = [f"{sign} {_number(schema[key])}" for key, sign in BOUNDS.items() if key in schema]
    if "minimum" in schema and "maximum" in schema:
        limits = [f"{_number(schema['minimum'])}..{_number(schema['maximum'])}"]
    if "multipleOf" in schema:
        limits.append(f"a multiple of {schema['multipleOf']}")
    return f"{text} {', '.join(limits)}".rstrip()


def _number(value: float) -> str:
    """``0.5``; a large power of two as ``2^62``."""
    if isinstance(value, int) and value >= LARGE and value.bit_count() == 1:
        return f"2^{value.bit_length() - 1}"
    return f"{value:g}" if value < LARGE else str(value)
