"""Fields of a ``config.json`` that choose a variant of the network: held to what is implemented.

A field that would change the arithmetic, and that no size covers, must have a value for which the
decoder computes what the published code computes. Other spellings of such a value are taken:
integers for truth values, null where a false would stand, ``{"type": "default"}`` for no scaling.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeGuard

SHARED: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1,),
}
"""Fields that published classes of any family read, with the values that are implemented."""
ROPES = ("rope_scaling", "rope_parameters")
"""Objects that describe the rotary embedding, by transformers before and since version 5."""
LAYER_TYPES, FULL = "layer_types", "full_attention"


def refused_variants(
    config: Mapping[str, Any], variants: Mapping[str, tuple[object, ...]]
) -> Iterator[str]:
    """Say which fields choose a variant that is not implemented, ``field: problem`` each.

    Args:
        config: ``config.json``.
        variants: fields that choose a variant in this family, each with the values that are
            implemented; one of ``SHARED`` is held to these values instead.
    """
    for field, allowed in {**SHARED, **variants}.items():
        if field in config and not any(_same(config[field], value) for value in allowed):
            wanted = " or ".join(map(repr, allowed))
            yield f"{field}: Input should be {wanted} (given {config[field]!r})"
    layers = None if LAYER_TYPES in variants else config.get(LAYER_TYPES)
    if layers is not None and (not isinstance(layers, list) or any(t != FULL for t in layers)):
        yield f"{LAYER_TYPES}: Input should be {FULL!r} for every block"


def read_theta(
    config: Mapping[str, Any], field: str, variants: Mapping[str, tuple[object, ...]]
) -> tuple[float | None, list[str]]:
    """Read the base of the rotary embedding, wherever it stands.

    Args:
        config: ``config.json``.
        field: of the base, outside the objects that describe the whole embedding.
        variants: as in ``refused_variants``; an object that it holds is not read here.

    Returns:
        The base that the objects give, None if they give none, and what is wrong with them: they
        scale, or two places give two bases.
    """
    problems: list[str] = []
    bases: dict[str, float] = {}
    for name in ROPES:
        rope = None if name in variants else config.get(name)
        if rope is None:
            continue
        if not isinstance(rope, dict):
            problems.append(f"{name}: Input should be an object or null")
            continue
        problems += (f"{name}.{problem}" for problem in _scaled(rope))
        base = rope.get("rope_theta")
        if _is_base(base):
            bases[f"{name}.rope_theta"] = base
        elif base is not None:
            problems.append(f"{name}.rope_theta: Input should be a number greater than 0")
    outside = config.get(field)
    known = {field: outside, **bases} if _is_base(outside) else bases
    if len(set(known.values())) > 1:
        told = ", ".join(f"{place} {base}" for place, base in known.items())
        problems.append(f"{field}: two places give two bases: {told}")
    return next(iter(bases.values()), None), problems


def _scaled(rope: Mapping[str, Any]) -> Iterator[str]:
    """Say what an object asks for beyond the plain embedding."""
    for name, value in rope.items():
        if value is None or name == "rope_theta":
            continue
        if name in ("rope_type", "type"):
            if value != "default":
                yield f"{name}: Input should be 'default'"
        elif name != "partial_rotary_factor" or not _same(value, 1):
            yield f"{name}: scaled or partial rotary embeddings are not implemented"


def _is_base(value: object) -> TypeGuard[float]:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and value > 0
    )


def _same(given: object, allowed: object) -> bool:
    """Whether published code, which asks ``if config.field``, takes both alike.

    A 1 stands for true, and null for false; a true stands for no number.
    """
    if isinstance(given, bool) and not isinstance(allowed, bool):
        return False
    return given == allowed or (allowed is False and given is None)
