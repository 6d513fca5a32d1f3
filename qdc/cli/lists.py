"""``qdc passes`` and ``qdc backends``: what is registered."""

import inspect
from collections.abc import Sequence
from pathlib import Path

from pydantic.fields import FieldInfo

from qdc.cli.terminal import console, print_json, table
from qdc.errors import UnknownName, nearest
from qdc.passbase import Configured, Kinds, Pass, option_text
from qdc.registry import Registry, standard_registry


def passes_command(
    names: Sequence[str], provides: str | None, plugins: Sequence[Path], as_json: bool
) -> None:
    """List passes, or describe the named ones."""
    registry = standard_registry(plugins)
    chosen = [registry.find_pass(name) for name in names] or list(registry.passes.values())
    if provides is not None:
        chosen = [kind for kind in chosen if provides in _tags(kind.provides)]
        if not chosen:
            known = {tag for kind in registry.passes.values() for tag in _tags(kind.provides)}
            raise UnknownName(f"no pass provides {provides!r}", help=nearest(provides, known))
    described = [describe(kind) for kind in chosen]
    if as_json:
        print_json({"passes": described, "presets": registry.presets})
        return
    to = console()
    rows = table("passes", "pass", "reads", "writes", "what it does")
    for entry in described:
        rows.add_row(entry["name"], entry["reads"], entry["writes"], entry["summary"])
    to.print(rows)
    for entry in described:
        _print_options(entry)
    if not names and provides is None:
        presets = table("presets", "name", "pipeline")
        for name, text in registry.presets.items():
            presets.add_row(name, text)
        to.print()
        to.print(presets)


def backends_command(plugins: Sequence[Path], as_json: bool) -> None:
    """List backends."""
    registry: Registry = standard_registry(plugins)
    described = [describe(kind) for kind in registry.backends.values()]
    if as_json:
        print_json({"backends": described})
        return
    rows = table("backends", "backend", "reads", "what it does")
    for entry in described:
        rows.add_row(entry["name"], entry["reads"], entry["summary"])
    console().print(rows)
    for entry in described:
        _print_options(entry)


def describe(kind: type[Configured]) -> dict[str, object]:
    """A pass or backend as plain data."""
    return {
        "name": kind.name,
        "summary": (inspect.getdoc(kind) or "").split("\n")[0].rstrip("."),
        "reads": " ".join(_tags(getattr(kind, "requires", ()))),
        "writes": " ".join(_tags(getattr(kind, "provides", ()))),
        "whole_model": issubclass(kind, Pass) and kind.barrier,
        "calibration": issubclass(kind, Pass) and kind.reads_calibration,
        "options": [
            {
                "name": name.replace("_", "-"),
                "default": _default(field),
                "help": field.description or "",
            }
            for name, field in kind.model_fields.items()
        ],
    }


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "none" if value is None else option_text(value)


def _print_options(entry: dict[str, object]) -> None:
    options = entry["options"]
    if isinstance(options, list) and options:
        rows = table(f"\n{entry['name']}", "option", "default", "meaning")
        for option in options:
            rows.add_row(option["name"], option["default"], option["help"])
        console().print(rows)


def _tags(kinds: Kinds) -> list[str]:
    return [kind.slot_name() if not hasattr(kind, "tag") else kind.tag for kind in kinds]
