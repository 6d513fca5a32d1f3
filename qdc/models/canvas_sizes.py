"""From a DiffusionGemma ``config.json`` to the sizes of a decoder with a canvas.

Sizes of the text's network stand in ``text_config``. A field that decides the network is read or
held to what is implemented; a problem is told under its published name. Fields that are missing
have the values of the published configuration class.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qdc.models.configuration import DEEPEST, MOST_EXPERTS, Count, Depth, Width
from qdc.models.variants import same_value

SLIDING, FULL = "sliding_attention", "full_attention"
TEXT = "text_config"
FIELDS: Mapping[str, str] = {
    "width": "hidden_size",
    "blocks": "num_hidden_layers",
    "heads": "num_attention_heads",
    "key_heads": "num_key_value_heads",
    "head_width": "head_dim",
    "hidden": "intermediate_size",
    "experts": "num_experts",
    "experts_per_token": "top_k_experts",
    "expert_hidden": "moe_intermediate_size",
    "vocabulary": "vocab_size",
    "max_length": "max_position_embeddings",
    "eps": "rms_norm_eps",
    "past": "sliding_window",
    "cap": "final_logit_softcapping",
}
"""Sizes, and the field of ``text_config`` that gives each."""
KINDS, ROPES, OVERRIDES = "layer_types", "rope_parameters", "per_layer_config"
GLOBAL_WIDTH, GLOBAL_HEADS = "global_head_dim", "num_global_key_value_heads"
CANVAS, TIED = "canvas_length", "tie_word_embeddings"
USUAL: Mapping[str, object] = {
    "width": 2304,
    "blocks": 30,
    "heads": 8,
    "key_heads": 4,
    "head_width": 256,
    "hidden": 9216,
    "vocabulary": 262144,
    "max_length": 131072,
    "eps": 1e-6,
    "past": 512,
    "cap": 30.0,
}
USUAL_CANVAS, USUAL_GLOBAL_WIDTH = 256, 512
USUAL_ROPES: Mapping[str, Mapping[str, object]] = {
    SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0},
}
EVERY = 6
"""Where blocks are not listed, each sixth one is full."""
NEAREST = 2
"""Columns of text in a sliding block: where none is kept beside the own one, published code slices
its cache from -0, which is all of it."""
OF_KIND = {"sliding": SLIDING, "full": FULL}
HELD: Mapping[str, tuple[object, ...]] = {
    "hidden_activation": ("gelu_pytorch_tanh",),
    "attention_bias": (False, None),
    "use_bidirectional_attention": (None, "vision"),
    "attention_k_eq_v": (True, None),
    "tie_word_embeddings": (True,),
    "is_causal": (True, None),
    "rope_scaling": (None,),
}
"""Fields of ``text_config`` that choose a variant, with the values that are implemented. What reads
images both ways reads text as without."""

Theta = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]


class Heads(BaseModel):
    """What blocks of one kind have of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    columns: Width
    key_heads: Width
    theta: Theta
    share: Share | None = None
    """Of the pairs of a head that are turned; None for a plain rotation of all."""


class HeadSizes(NamedTuple):
    """Attention of one block."""

    columns: int
    key_heads: int
    theta: float
    turned: float | None
    """Share of the pairs of a head that are turned; None for a plain rotation of all."""
    past: int | None
    """Columns of text that one sees, itself included; None for all."""
    has_values: bool
    """Whether values have a projection of their own; without one they are the keys."""


class CanvasSizes(BaseModel):
    """What a decoder with a canvas is built with."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    width: Width
    blocks: Depth
    heads: Width
    hidden: Width
    experts: Annotated[int, Field(gt=0, le=4096)]
    experts_per_token: Count
    expert_hidden: Width
    vocabulary: Width
    max_length: Count
    eps: Annotated[float, Field(gt=0)]
    past: Count
    cap: Annotated[float, Field(gt=0)]
    canvas: Count
    kinds: tuple[Literal["sliding_attention", "full_attention"], ...]
    """Of each block."""
    sliding: Heads
    full: Heads

    def heads_of(self, index: int) -> HeadSizes:
        """Attention of the block of this number."""
        slides = self.kinds[index] == SLIDING
        found = self.sliding if slides else self.full
        past = self.past if slides else None
        return HeadSizes(
            found.columns, found.key_heads, found.theta, found.share, past, has_values=slides
        )


def read_canvas_sizes(config: Mapping[str, Any]) -> tuple[CanvasSizes | None, list[str]]:
    """Read a configuration.

    Args:
        config: ``config.json``.

    Returns:
        The sizes, None where they cannot be read, and what is wrong, ``field: problem`` each.
    """
    text = config.get(TEXT)
    if text is None:
        text = {}
    if not isinstance(text, dict):
        return None, [f"{TEXT}: Input should be an object"]
    problems = list(_held(config, text))
    given = {**USUAL, **{size: text[f] for size, f in FIELDS.items() if f in text}}
    given["canvas"] = config.get(CANVAS, USUAL_CANVAS)
    blocks = given["blocks"]
    kinds = text.get(KINDS)
    if kinds is None:
        known = range(1, blocks + 1) if type(blocks) is int and 0 < blocks <= DEEPEST else ()
        kinds = [SLIDING if number % EVERY and number < blocks else FULL for number in known]
    heads = {"columns": given.pop("head_width"), "key_heads": given.pop("key_heads")}
    try:
        overridden = _overridden(text, kinds if isinstance(kinds, list) else [])
        ropes = _ropes(text)
    except ValueError as error:
        return None, [*problems, str(error)]
    given |= {
        "kinds": kinds,
        "sliding": {**heads, **overridden[SLIDING], **ropes[SLIDING]},
        "full": {**heads, **overridden[FULL], **ropes[FULL]},
    }
    problems += _truths(given)
    try:
        sizes = CanvasSizes.model_validate(given)
    except ValidationError as error:
        return None, problems + [_told(each) for each in error.errors()]
    problems += _contradictions(sizes)
    return sizes, problems


def _held(config: Mapping[str, Any], text: Mapping[str, Any]) -> Iterator[str]:
    places = [(f"{TEXT}.", text, name) for name in HELD]
    for prefix, where, name in (*places, ("", config, TIED)):
        if name in where and not any(same_value(where[name], value) for value in HELD[name]):
            wanted = " or ".join(map(repr, HELD[name]))
            yield f"{prefix}{name}: Input should be {wanted} (given {where[name]!r:.80})"


def _truths(given: Mapping[str, Any]) -> Iterator[str]:
    """Truth values in the place of numbers, as which they would count."""
    for size, value in given.items():
        inner = value.items() if isinstance(value, dict) else ()
        for place in ([(size, value)], [((size, name), each) for name, each in inner]):
            for where, one in place:
                if isinstance(one, bool):
                    yield f"{_name(where)}: Input should be a number"


def _overridden(text: Mapping[str, Any], kinds: list[Any]) -> dict[str, dict[str, object]]:
    """What blocks of each kind have in the place of the common head. Raises ``ValueError``."""
    if OVERRIDES not in text:
        found: dict[str, object] = {"columns": text.get(GLOBAL_WIDTH, USUAL_GLOBAL_WIDTH)}
        if text.get(GLOBAL_HEADS) is not None:
            found["key_heads"] = text[GLOBAL_HEADS]
        return {SLIDING: {}, FULL: found}
    listed, sizes = text[OVERRIDES], {"head_dim": "columns", "num_key_value_heads": "key_heads"}
    place = f"{TEXT}.{OVERRIDES}"
    if not isinstance(listed, dict) or not all(isinstance(v, dict) for v in listed.values()):
        raise ValueError(f"{place}: Input should be an object of objects")
    each: dict[int, dict[str, object]] = {}
    for number, fields in listed.items():
        if not str(number).isdecimal() or int(number) >= len(kinds):
            raise ValueError(f"{place}: {number!r:.80} is the number of no block")
        unknown = [name for name in fields if name not in sizes]
        if unknown:
            raise ValueError(
                f"{place}.{number}: blocks may differ in {' and '.join(sizes)} alone "
                f"(given {', '.join(unknown):.80})"
            )
        each[int(number)] = {sizes[name]: value for name, value in fields.items()}
    result: dict[str, dict[str, object]] = {}
    for kind in (SLIDING, FULL):
        alike = [each.get(number, {}) for number, given in enumerate(kinds) if given == kind]
        if any(one != alike[0] for one in alike):
            raise ValueError(f"{place}: blocks of {kind} differ from each other")
        result[kind] = alike[0] if alike else {}
    return result


def _ropes(text: Mapping[str, Any]) -> dict[str, dict[str, object]]:
    """Base and turned share of each kind. Raises ``ValueError``."""
    place = f"{TEXT}.{ROPES}"
    given = text.get(ROPES)
    given = USUAL_ROPES if given is None else given
    if not isinstance(given, Mapping) or set(given) != {SLIDING, FULL}:
        raise ValueError(f"{place}: Input should be an object of {SLIDING} and {FULL}")
    found: dict[str, dict[str, object]] = {}
    for kind, rope in given.items():
        where = f"{place}.{kind}"
        if not isinstance(rope, Mapping):
            raise ValueError(f"{where}: Input should be an object")
        named = rope.get("rope_type")
        share = rope.get("partial_rotary_factor")
        if named not in ("default", "proportional"):
            raise ValueError(
                f"{where}.rope_type: Input should be 'default' or 'proportional' (given {named!r})"
            )
        if named == "default" and share not in (None, 1):
            raise ValueError(f"{where}.partial_rotary_factor: a default rotation turns all of it")
        known = ("rope_type", "rope_theta", "partial_rotary_factor")
        other = [n for n, v in rope.items() if n not in known and not (n == "factor" and v == 1)]
        if other:
            raise ValueError(f"{where}.{other[0]}: scaled rotary embeddings are not implemented")
        if "rope_theta" not in rope:
            raise ValueError(f"{where}.rope_theta: a value is needed")
        found[kind] = {"theta": rope["rope_theta"]}
        if named == "proportional":
            found[kind]["share"] = 1.0 if share is None else share
    return found


def _told(error: Any) -> str:
    """A problem that pydantic has found, under its published name."""
    first, *rest = error["loc"]
    if first in OF_KIND:
        return f"{_name((first, rest[0]))}: {error['msg']}, in blocks of {OF_KIND[first]}"
    return f"{'.'.join((_name(first), *map(str, rest)))}: {error['msg']}"


def _name(size: str | tuple[str, str]) -> str:
    """The published field of a size, or of one that blocks of a kind have of their own."""
    if size == "canvas":
        return CANVAS
    if isinstance(size, tuple):
        field = {"columns": "head_dim", "key_heads": "num_key_value_heads"}.get(size[1], ROPES)
    else:
        field = {**FIELDS, "kinds": KINDS}.get(size, size)
    return f"{TEXT}.{field}"


def _contradictions(sizes: CanvasSizes) -> Iterator[str]:
    """What is wrong with sizes that are each possible by themselves."""
    if len(sizes.kinds) != sizes.blocks:
        yield f"{TEXT}.{KINDS}: {len(sizes.kinds)} kinds for {sizes.blocks} blocks"
    elif sizes.kinds[-1] != FULL:
        yield f"{TEXT}.{KINDS}: the last block should be of {FULL}"
    for kind, heads in ((SLIDING, sizes.sliding), (FULL, sizes.full)):
        if heads.columns % 2:
            yield f"{TEXT}.head_dim: {heads.columns} columns cannot be rotated, in blocks of {kind}"
        if sizes.heads % heads.key_heads:
            yield (
                f"{TEXT}.num_attention_heads {sizes.heads} is no multiple of num_key_value_heads "
                f"{heads.key_heads}, in blocks of {kind}"
            )
    if sizes.canvas > sizes.max_length:
        yield f"{CANVAS} {sizes.canvas} is above {TEXT}.max_position_embeddings {sizes.max_length}"
    if sizes.past < NEAREST:
        yield (
            f"{TEXT}.sliding_window: Input should be {NEAREST} at the least (given {sizes.past}); "
            "with less the published cache keeps all of the text"
        )
    if sizes.experts_per_token > sizes.experts:
        yield (
            f"{TEXT}.top_k_experts {sizes.experts_per_token} is above num_experts {sizes.experts}"
        )
    if sizes.experts * sizes.blocks > MOST_EXPERTS:
        yield (
            f"{TEXT}.num_experts {sizes.experts} in {sizes.blocks} blocks are more than "
            f"{MOST_EXPERTS} experts"
        )
