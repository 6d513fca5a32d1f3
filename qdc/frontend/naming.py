"""Which tensor of a checkpoint is which one of a transformers module.

Checkpoints say it in the names of the day on which they were saved: norms with gamma and beta, a
base model without the prefix that its head puts before it, tied tensors once or twice, and heads
of other tasks beside. Everything that is not sure to be one of these is an error.
"""

import re
from collections.abc import Collection, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint, UnsupportedModel
from qdc.frontend.held_in_parts import held_whole, require_shape
from qdc.frontend.native import NativeModel
from qdc.frontend.native_config import quiet
from qdc.frontend.own_names import BUFFERS, COMPUTED, unwrapped
from qdc.frontend.unrolled import GATE_UP
from qdc.ir.parts import Part

IGNORED = "transformers does not read it"


def match_tensors(native: NativeModel, checkpoint: Checkpoint) -> None:
    """Let a checkpoint show its tensors under the names of the module, and no others.

    What the module has no use for is left out with its reason. A name that nothing explains stays,
    for ``check_tensors`` to complain about.

    Raises:
        InvalidCheckpoint: two tensors claim one name.
        UnsupportedModel: transformers would compute a tensor from those of the checkpoint.
    """
    owned, tied = native.body.state_dict(), native.tied
    whole = held_whole(native.body)
    found: dict[str, str | Part] = {}
    twins: dict[str, str] = {}
    spare: list[str] = []
    claimed: dict[str, list[Part]] = {}
    for key, name in _renamed(native, checkpoint, {*owned, *whole}):
        if name in whole:
            require_shape(checkpoint, key, whole[name])
            for inner, part in whole[name].parts.items():
                claimed.setdefault(inner, []).append(replace(part, key=key))
        elif name in owned:
            claimed.setdefault(name, []).append(Part(key))
        else:
            spare.append(key)
    twice = [each.key for parts in claimed.values() if len(parts) > 1 for each in parts]
    if twice:
        raise InvalidCheckpoint(
            "tensors of the checkpoint have one place in the model",
            where=list(dict.fromkeys(twice)),
        )
    for name, (stored,) in claimed.items():
        first = tied.get(name, name)
        if first in found:
            twins[stored.key] = first
        else:
            found[first] = stored
    left_out = {key: f"the same tensor as {first}" for key, first in twins.items()}
    left_out |= _explained(native, spare)
    checkpoint.rename(
        {**found, **{key: key for key in spare if key not in left_out}}, left_out, twins
    )


def _renamed(
    native: NativeModel, checkpoint: Checkpoint, known: Collection[str]
) -> Iterator[tuple[str, str]]:
    """Every key with its name in the module, as transformers itself renames when it loads.

    What has one of the ``known`` names has it already.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    rules = get_model_conversion_mapping(native.body)
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    owned: dict[str, Any] = native.body.state_dict()
    prefix = native.body.base_model_prefix
    converted = []
    for key in checkpoint.headers:
        plain = key if key in known else unwrapped(key)
        if plain in known:
            yield key, plain
            continue
        name, pattern = rename_source_key(plain, renamings, converters, prefix, owned)
        if pattern is not None:
            converted.append(key)
        yield key, name
    if converted:
        raise UnsupportedModel(
            f"{native.kind} computes its tensors from those of the checkpoint", where=converted
        )


def _explained(native: NativeModel, spare: list[str]) -> dict[str, str]:
    """Why the module has no place for these, for those of which it is known."""
    if not spare:
        return {}
    body = native.body
    ignored = "|".join(f"({p})" for p in body._keys_to_ignore_on_load_unexpected or ())
    found = {}
    heads = _heads(native)
    for key in spare:
        if re.search(BUFFERS, key):
            found[key] = COMPUTED
        elif ignored and re.search(ignored, key):
            found[key] = IGNORED
        elif key in heads:
            found[key] = f"a head of {heads[key]} that the result does not depend on"
    return found


def _heads(native: NativeModel) -> dict[str, str]:
    """Tensors that the classes for pretraining and pooling have in modules that this one lacks."""
    from transformers import AutoModel, AutoModelForPreTraining

    found: dict[str, str] = {}
    config, modules = native.body.config, {path for path, _ in native.body.named_modules()}
    for auto in (AutoModelForPreTraining, AutoModel):
        kind = auto._model_mapping.get(type(config), None)
        if kind is None or isinstance(kind, tuple):
            continue
        with quiet(), torch.device("meta"):
            other = kind(deepcopy(config))
        prefix = "" if kind is type(native.body) or auto is not AutoModel else _base(native)
        for name in (f"{prefix}{name}" for name in other.state_dict()):
            if name.rpartition(".")[0] not in modules:
                found.setdefault(name, kind.__name__)
    return found


def _base(native: NativeModel) -> str:
    """What the names of the base model begin with inside the module."""
    prefix = native.body.base_model_prefix
    return f"{prefix}." if hasattr(native.body, prefix) else ""


def stacks_experts(native: NativeModel) -> bool:
    """Whether checkpoints of the class hold experts stacked, as the class itself does.

    Of others transformers stacks them when it loads, from tensors for each expert.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping

    rules = get_model_conversion_mapping(native.body)
    return not any(GATE_UP in str(rule.target_patterns) for rule in rules)
