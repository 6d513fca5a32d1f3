"""``qdc passes`` and ``qdc backends``: what is registered."""

from collections.abc import Sequence
from pathlib import Path

from qdc.cli.describe import Described, Option, describe, tags
from qdc.cli.terminal import console, print_json, print_lines, print_pipeline, print_table, table
from qdc.errors import QdcError, UnknownName, nearest
from qdc.pipeline.registry import Registry, standard_registry


def passes_command(
    names: Sequence[str], provides: str | None, plugins: Sequence[Path], as_json: bool
) -> None:
    """List passes and presets, or describe the named ones in full."""
    registry = standard_registry(plugins)
    presets = {
        n: p.text for n, p in registry.presets.items() if not provides and (n in names or not names)
    }
    chosen = [_named(n, registry) for n in names if n not in registry.presets]
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
            print_in_full(entry)
        print_options(entry.name, entry.options)
    if presets:
        console().print("\npresets", style="bold")
        width = max(map(len, presets))
        for name, text in presets.items():
            print_pipeline(console(), f"{name:<{width}}  ", text)


def backends_command(names: Sequence[str], plugins: Sequence[Path], as_json: bool) -> None:
    """List backends with what they read and do, or describe the named ones in full."""
    registry = standard_registry(plugins)
    kinds = [registry.find_backend(name) for name in names] or registry.backends.values()
    described = [describe(kind) for kind in kinds]
    if as_json:
        print_json({"backends": [entry.as_data() for entry in described]})
        return
    if not names:
        rows = table("backends", "backend", "reads", "what it does")
        for entry in described:
            rows.add_row(entry.name, " ".join(entry.reads), entry.summary)
        print_table(console(), rows)
    for entry in described:
        if names:
            print_in_full(entry)
        print_options(entry.name, entry.options)


def print_in_full(entry: Described) -> None:
    """Print what the module of a pass, a backend or a strategy says of it."""
    console().print(f"\n{entry.name}", style="bold", markup=False)
    print_lines(console(), *entry.text.splitlines())


def _named(name: str, registry: Registry) -> Described:
    if name in registry.backends:
        raise UnknownName(f"{name!r} is a backend, not a pass", help="qdc backends")
    return describe(registry.find_pass(name))


def _providing(tag: str, chosen: Sequence[Described], registry: Registry) -> list[Described]:
    """Those that write this annotation, or one that fills the slot of this name."""
    slots = {
        kind.name: {*tags(written), *(note.slot_name() for note in written)}
        for kind in registry.passes.values()
        for written in ((*kind.provides, *kind.if_asked),)
    }
    found = [entry for entry in chosen if tag in slots[entry.name]]
    if found:
        return found
    able = [name for name, provided in slots.items() if tag in provided]
    if not able:
        raise UnknownName(
            f"no pass provides {tag!r}", help=nearest(tag, set().union(*slots.values()))
        )
    if not chosen:
        raise QdcError("--provides is about passes, not about presets", help="name no preset")
    raise QdcError(
        f"{tag!r} is not provided by {', '.join(entry.name for entry in chosen)}",
        help=f"provided by: {', '.join(able)}",
    )


def _print_passes(chosen: Sequence[Described]) -> None:
    rows = table("passes", "pass", "reads", "writes", "what it does")
    for entry in chosen:
        rows.add_row(entry.name, " ".join(entry.reads), " ".join(entry.writes), entry.summary)
    print_table(console(), rows)


def print_options(name: str, options: Sequence[Option]) -> None:
    """Print a table of the options that something of this name has, if it has any."""
    if options:
        rows = table(f"\n{name}", "option", "takes", "default", "meaning")
        for option in options:
            rows.add_row(option.name, option.values, option.default_text, option.help)
        print_table(console(), rows)
