"""The configuration of a model as the class that transformers has for its type reads it."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from qdc.errors import UnsupportedModel
from qdc.models.other_fields import set_fields

if TYPE_CHECKING:
    from transformers import PretrainedConfig

NOT_PARSED = ("auto_map", "quantization_config")
"""Fields that are not handed on: they ask for code and for a quantizer of transformers."""
READ_HERE = {"mask_token_id", "is_causal"}
"""Fields that are read whether the class has them or not."""
LONGEST_REASON = 300


def unused_fields(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Fields that are set, and that the configuration class of transformers does not know.

    It keeps them as attributes, and nothing else of it changes by them. The configuration is one
    that ``find_class`` has parsed.
    """
    kind = config["model_type"]
    plain = {name: config[name] for name in config if name not in NOT_PARSED}
    parsed = parse_native(kind, plain)
    whole = parsed.to_dict()
    names = (*parsed.attribute_map, *parsed.attribute_map.values())
    declared = {field.name for field in fields(type(parsed))} | set(names)
    found = []
    for name in set_fields(config, declared | READ_HERE):
        without = parse_native(kind, {key: plain[key] for key in plain if key != name}).to_dict()
        if all(without.get(key) == whole[key] for key in whole if key != name):
            found.append(name)
    return tuple(found)


def parse_native(kind: str, plain: dict[str, Any]) -> "PretrainedConfig":
    """Read a configuration by the class of its type. Raises ``UnsupportedModel``."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        with quiet():
            parsed: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(deepcopy(plain))
    except Exception as error:  # each configuration class raises what it likes
        raise UnsupportedModel(
            f"config.json is no configuration of {kind}: {first_line(error)}"
        ) from error
    return parsed


def first_line(error: BaseException) -> str:
    """The first sentence of a message, or the name of its class if it says nothing."""
    lines = (line.strip() for line in str(error).splitlines())
    line = next((line for line in lines if line), type(error).__name__)
    return line.split(". ")[0][:LONGEST_REASON]


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers say nothing but errors."""
    from transformers.utils.logging import get_verbosity, set_verbosity

    before = get_verbosity()
    set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        set_verbosity(before)
