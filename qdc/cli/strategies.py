"""``qdc strategies``: which strategies decode, and what each reads."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from qdc.cli.describe import Option, describe
from qdc.cli.lists import print_options
from qdc.cli.terminal import console, print_json, print_lines, print_table, table
from qdc.pipeline.passbase import option_text
from qdc.pipeline.registry import Registry, find_named, standard_registry
from qdc.pipeline.strategybase import Strategy
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.strategies import (
    SHARED,
    needs_canvas,
    needs_verifier,
    shared_options,
)

OF_STEPS = "all but apd and renoise take --cache, --cfg and --forbid-eos"


def strategies_command(names: Sequence[str], plugins: Sequence[Path], as_json: bool) -> None:
    """List strategies, where they are from, and the options that they read; or just some."""
    registry = standard_registry(plugins)
    known = registry.strategies
    kinds = [find_named("strategy", name, known, known) for name in names] or list(known.values())
    if as_json:
        print_json({"strategies": [_as_data(kind, registry) for kind in kinds]})
        return
    to = console()
    rows = table("strategies", "strategy", "what it decides")
    for kind in kinds:
        rows.add_row(kind.name, describe(kind).summary)
    print_table(to, rows)
    for kind in kinds:
        to.print(f"\n{kind.name}", style="bold", markup=False)
        origin = registry.origin(kind)
        if origin:
            print_lines(to, f"  defined  by {origin}")
        if kind.source:
            print_lines(to, f"  source   {kind.source}")
        defaults = _own_defaults(kind)
        flags = [_flag(name, defaults) for name in shared_options(kind)]
        flags += ["--verifier"] * needs_verifier(kind) + ["--cache prefix"] * needs_canvas(kind)
        print_lines(to, f"  reads    {' '.join(flags) or 'no option'}")
        print_options(kind.name, _own_options(kind))
    print_lines(to, "", OF_STEPS)


def _own_options(kind: type[Strategy]) -> list[Option]:
    """Options that no other option of the command stands for: ``name{option=value}``."""
    options = describe(kind).options
    return [option for option in options if option.name.replace("-", "_") not in SHARED]


def _own_defaults(kind: type[Strategy]) -> dict[str, object]:
    """Defaults of shared options that are left to the strategy."""
    names = (name for name in shared_options(kind) if name in kind.model_fields)
    found = {name: kind.model_fields[name].get_default() for name in names}
    return {
        name: default
        for name, default in found.items()
        if default is not None and DecodeOptions.model_fields[name].default is None
    }


def _flag(name: str, defaults: Mapping[str, object]) -> str:
    flag = "--" + name.replace("_", "-")
    return f"{flag} [{option_text(defaults[name])}]" if name in defaults else flag


def _as_data(kind: type[Strategy], registry: Registry) -> dict[str, object]:
    return {
        "name": kind.name,
        "summary": describe(kind).summary,
        "source": kind.source or None,
        "origin": registry.origin(kind) or None,
        "reads": shared_options(kind),
        "defaults": _own_defaults(kind),
        "verifier": needs_verifier(kind),
        "canvas": needs_canvas(kind),
        "options": [option._asdict() for option in _own_options(kind)],
    }
