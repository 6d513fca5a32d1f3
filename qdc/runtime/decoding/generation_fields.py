"""What a checkpoint's ``generation_config.json`` says of decoding: ends, and a canvas's sampler.

Published checkpoints set there what differs from the defaults of their classes. Source:
transformers 5.24, ``DiffusionGemmaGenerationConfig``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from qdc.errors import QdcError
from qdc.runtime.decoding.denoising import Renoise

GENERATION = "generation_config.json"
SAMPLER = "sampler_config"
KIND = "_cls_name"
BOUNDED = "EntropyBoundSamplerConfig"
"""The one kind of sampler that there is."""
OF_RENOISE: Mapping[str, str] = {
    "max_denoising_steps": "denoising-steps",
    "t_max": "first-temperature",
    "t_min": "last-temperature",
    "stability_threshold": "stability",
    "confidence_threshold": "confidence",
}
"""Fields, and the option of ``renoise`` that each one is."""
OF_SAMPLER: Mapping[str, str] = {"entropy_bound": "entropy-bound"}
"""The same of what is inside ``sampler_config``."""


def named_ends(generation: Mapping[str, Any]) -> list[object]:
    """What it names as ends of an answer, token ids or whatever stands there."""
    named = generation.get("eos_token_id")
    return list(named) if isinstance(named, list) else [named]


def with_published_options(
    usual: Mapping[str, object], generation: Mapping[str, Any]
) -> dict[str, object]:
    """A family's own options of decoding, with those that its checkpoint sets.

    Args:
        usual: options by name, ``strategy`` among them, or nothing.
        generation: ``generation_config.json``; fields that are null are not set.

    Raises:
        QdcError: the file asks for a sampler that is not implemented, or gives no number.
    """
    if usual.get("strategy") != Renoise.name:
        return dict(usual)
    written = " ".join(f"{option}={value!r}" for option, value in _set_options(generation))
    return {**usual, "strategy": f"{Renoise.name}{{{written}}}"} if written else dict(usual)


def _set_options(generation: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    inner = generation.get(SAMPLER)
    inner = {} if inner is None else inner
    known = (KIND, *OF_SAMPLER)
    if not isinstance(inner, Mapping) or inner.get(KIND, BOUNDED) != BOUNDED:
        raise _refused(SAMPLER, inner)
    for name, value in inner.items():
        if name not in known and value is not None:
            raise _refused(f"{SAMPLER}.{name}", value)
    for prefix, fields, options in (
        ("", generation, OF_RENOISE),
        (f"{SAMPLER}.", inner, OF_SAMPLER),
    ):
        for name, option in options.items():
            value = fields.get(name)
            if isinstance(value, bool) or not isinstance(value, int | float | None):
                raise _refused(prefix + name, value)
            if value is not None:
                yield option, value


def _refused(field: str, value: object) -> QdcError:
    return QdcError(
        f"{GENERATION} asks for a sampler that is not implemented",
        where=[f"{field}: {value!r:.80}"],
        help=f"take the field out of {GENERATION}; canvases are written by an entropy bound",
    )
