"""What the server says of its model to clients and to its page."""

from typing import Any

from qdc.pipeline.passbase import summary
from qdc.pipeline.strategybase import Strategy
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import CACHE_BITS, CACHES, DecodeOptions
from qdc.runtime.decoding.strategies import (
    Strategies,
    needs_canvas,
    needs_verifier,
    shared_options,
)
from qdc.serve.intake import DEFAULT_LENGTH
from qdc.serve.limits import Limits

BOUNDS = ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
"""Of a number, by their names in JSON schema."""
COUNTED = ("steps", "block")
"""Options that count places: more of them than the server takes tokens means nothing."""


def offer(
    strategies: Strategies, limits: Limits, facts: DecodeFacts, *, verifies: bool
) -> dict[str, Any]:
    """Lengths, strategies with what each reads and is, caches, and bounds of what is a number.

    Args:
        strategies: all that there are, by name.
        limits: of the server.
        facts: of the model; those strategies are offered that decode it, and its own is the first.
        verifies: whether strategies that need a verifier can run.
    """
    usual = facts.usual
    own = str(usual.get("strategy", "")).partition("{")[0]
    canvas = facts.canvas is not None
    offered = {
        name: kind
        for name, kind in strategies.items()
        if needs_canvas(kind) == canvas and (verifies or not needs_verifier(kind))
    }
    offered = dict(sorted(offered.items(), key=lambda item: item[0] != own))
    defaults = {name: _defaults(kind) for name, kind in offered.items()}
    if own in defaults:
        own_options = shared_options(offered[own])
        defaults[own] |= {name: value for name, value in usual.items() if name in own_options}
    return {
        "max_length": limits.max_length,
        "default_length": max(1, min(DEFAULT_LENGTH, facts.longest(limits.max_length))),
        "strategies": list(offered),
        "strategy_options": {name: shared_options(kind) for name, kind in offered.items()},
        "strategy_defaults": defaults,
        "strategy_summaries": {name: summary(kind) for name, kind in offered.items()},
        "fill_strategies": [
            name for name, kind in offered.items() if not canvas and not needs_verifier(kind)
        ],
        "caches": [name for name in CACHES if not canvas or name != "dual"],
        "cache_bits": list(CACHE_BITS),
        "bounds": bounds(limits),
    }


def _defaults(kind: type[Strategy]) -> dict[str, Any]:
    """What a strategy takes where one of the options that it has from all is not given."""
    fields = {name: kind.model_fields.get(name) for name in shared_options(kind)}
    return {
        name: field.default
        for name, field in fields.items()
        if field is not None and field.default is not None
    }


def bounds(limits: Limits) -> dict[str, dict[str, float]]:
    """Bounds of numbers in requests, by field, in the words of JSON schema."""
    found: dict[str, dict[str, float]] = {}
    for name, schema in DecodeOptions.model_json_schema()["properties"].items():
        forms = [form for form in schema.get("anyOf", [schema]) if "type" in form]
        number = next((form for form in forms if form["type"] in ("integer", "number")), None)
        if number is not None and name not in ("length", "cache_bits"):
            found[name] = {key: number[key] for key in BOUNDS if key in number}
    for name in ("max_tokens", "gap_tokens", *COUNTED):
        found[name] = {"minimum": 1, "maximum": limits.max_length}
    return found
