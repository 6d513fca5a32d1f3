"""Fields of a ``config.json`` that choose a variant of the network: held to what is implemented.

A field that would change the arithmetic, and that no size covers, must have a value for which the
decoder computes what the published code computes. Other spellings of such a value are taken:
null where a false would stand, ``{"type": "default"}`` for no scaling; no number is a truth value.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard

BASE, SHARE = "rope_theta", "partial_rotary_factor"
"""Fields of such an object that are read: the base, and the share of each head that is rotated."""
PLURAL = {BASE: "bases", SHARE: "shares"}
SHARED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    SHARE: (1,),
}
"""Fields that published classes of any family read, with the values that are implemented."""
ROPES = ("rope_scaling", "rope_parameters")
"""Objects that describe the rotary embedding, by transformers before and since version 5."""
LAYER_TYPES, FULL = "layer_types", "full_attention"


class Rope(NamedTuple):
    """What a configuration says of the rotary embedding beyond its own fields."""

    found: dict[str, float]
    """``theta`` and ``rotated``, where the objects say them."""
    problems: list[str]
    """``field: problem`` each: it is scaled, or two places say two things."""


def refused_variants(
    config: Mapping[str, Any],
    variants: Mapping[str, tuple[object, ...]],
    read: Collection[str] = (),
) -> Iterator[str]:
    """Say which fields choose a variant that is not implemented, ``field: problem`` each.

    Args:
        config: ``config.json``.
        variants: fields that choose a variant in this family, each with the values that are
            implemented; one of ``SHARED`` is held to these values instead.
        read: fields that give sizes in this family, which are held to nothing.
    """
    for field, allowed in {**SHARED, **variants}.items():
        if field not in config or field in read:
            continue
        if not any(_same(config[field], value) for value in allowed):
            wanted = " or ".join(map(repr, allowed))
            yield f"{field}: Input should be {wanted} (given {config[field]!r})"
    layers = None if LAYER_TYPES in variants else config.get(LAYER_TYPES)
    if layers is not None and (not isinstance(layers, list) or any(t != FULL for t in layers)):
        yield f"{LAYER_TYPES}: Input should be {FULL!r} for every block"


def read_rope(
    config: Mapping[str, Any],
    theta: str,
    rotated: str,
    variants: Mapping[str, tuple[object, ...]],
) -> Rope:
    """Read the base of the rotary embedding and the rotated share, wherever they stand.

    Args:
        config: ``config.json``.
        theta: field of the base, outside the objects that describe the whole embedding.
        rotated: the same of the share of each head that is rotated; empty if all of it is.
        variants: as in ``refused_variants``; an object that it holds is not read here.
    """
    problems: list[str] = []
    outside = {BASE: config.get(theta), SHARE: config.get(rotated) if rotated else None}
    fields = {BASE: theta, SHARE: rotated}
    places: dict[str, dict[str, float]] = {
        name: {fields[name]: value} if _is_positive(value) else {}
        for name, value in outside.items()
    }
    found: dict[str, float] = {}
    for name in ROPES:
        rope = None if name in variants else config.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems.append(f"{name}: Input should be an object or null")
            continue
        problems += (f"{name}.{problem}" for problem in _scaled(rope, partial=bool(rotated)))
        for part, size in ((BASE, "theta"), *(((SHARE, "rotated"),) if rotated else ())):
            value = rope.get(part)
            if _is_positive(value) and (part == BASE or value <= 1):
                places[part][f"{name}.{part}"] = value
                found.setdefault(size, value)
            elif value is not None:
                most = "" if part == BASE else " and at most 1"
                problems.append(f"{name}.{part}: Input should be a number greater than 0{most}")
    for part, known in places.items():
        if len(set(known.values())) > 1:
            told = ", ".join(f"{place} {value}" for place, value in known.items())
            problems.append(f"{fields[part]}: two places give two {PLURAL[part]}: {told}")
    return Rope(found, problems)


def _scaled(rope: Mapping[str, Any], *, partial: bool) -> Iterator[str]:
    """Say what an object asks for beyond the plain embedding, or one of a part of each head."""
    for name, value in rope.items():
        if value is None or name == BASE or (partial and name == SHARE):
            continue
        if name in ("rope_type", "type"):
            if value != "default":
                yield f"{name}: Input should be 'default'"
        elif name != SHARE or not _same(value, 1):
            yield f"{name}: scaled or partial rotary embeddings are not implemented"


def _is_positive(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )


def _same(given: object, allowed: object) -> bool:
    """Whether published code, which asks ``if config.field``, takes both alike.

    Null stands for false; a truth value stands for no number, and no number for a truth value.
    """
    if isinstance(given, bool) != isinstance(allowed, bool) and given is not None:
        return False
    return given == allowed or (allowed is False and given is None)
