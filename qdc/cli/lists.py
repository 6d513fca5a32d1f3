"""``qdc passes`` and ``qdc backends``: what is registered."""

from collections.abc import Sequence
from pathlib import Path

from qdc.cli.describe import Described, describe, tags
from qdc.cli.terminal import console, print_json, table
from qdc.errors import UnknownName, nearest
from qdc.registry import Registry, standard_registry


def passes_command(
    names: Sequence[str], provides: str | None, plugins: Sequence[Path], as_json: bool
) -> None:
    """List passes and presets, or describe the named ones in full."""
    registry = standard_registry(plugins)
    presets = {
        n: t for n, t in registry.presets.items() if not provides and (n in names or not names)
    }
    chosen = [describe(registry.find_pass(n)) for n in names if n not in registry.presets]
    if not names:
        chosen = [describe(kind) for kind in registry.passes.values()]
    if provides is not None:
        chosen = _providing(provides.lstrip("@"), chosen, registry)
    if as_json:
        print_json({"passes": [entry.as_data() for entry in chosen], "presets": presets})
        return
    if chosen and not names:
        _print_passes(chosen)
    for entry in chosen:
        if names:
            console().print(f"\n{entry.name}", style="bold", markup=False)
            console().print(entry.text, markup=False)
        _print_options(entry)
    if presets:
        rows = table("\npresets", "name", "pipeline")
        for name, text in presets.items():
            rows.add_row(name, text)
        console().print(rows)


def backends_command(plugins: Sequence[Path], as_json: bool) -> None:
    """List backends."""
    described = [describe(kind) for kind in standard_registry(plugins).backends.values()]
    if as_json:
        print_json({"backends": [entry.as_data() for entry in described]})
        return
    rows = table("backends", "backend", "reads", "what it does")
    for entry in described:
        rows.add_row(entry.name, entry.reads, entry.summary)
    console().print(rows)
    for entry in described:
        _print_options(entry)


def _providing(tag: str, chosen: Sequence[Described], registry: Registry) -> list[Described]:
    """Those that write this annotation, or one that fills the slot of this name."""
    slots = {
        kind.name: {*tags(kind.provides), *(note.slot_name() for note in kind.provides)}
        for kind in registry.passes.values()
    }
    found = [entry for entry in chosen if tag in slots[entry.name]]
    if not found:
        known = set().union(*(slots[entry.name] for entry in chosen))
        raise UnknownName(f"no pass provides {tag!r}", help=nearest(tag, known))
    return found


def _print_passes(chosen: Sequence[Described]) -> None:
    rows = table("passes", "pass", "reads", "writes", "what it does")
    for entry in chosen:
        rows.add_row(entry.name, entry.reads, entry.writes, entry.summary)
    console().print(rows)


def _print_options(entry: Described) -> None:
    if entry.options:
        rows = table(f"\n{entry.name}", "option", "takes", "default", "meaning")
        for option in entry.options:
            rows.add_row(option.name, option.values, option.default, option.help)
        console().print(rows)
