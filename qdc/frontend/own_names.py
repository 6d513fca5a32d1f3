"""Which tensor of a checkpoint is which one of a module of ours.

Ours have the published names, and so have most checkpoints. Some were saved through a wrapper
(``module.``, ``_orig_mod.``), or by the base model alone, without the ``model.`` that its head
puts in front; some hold buffers of older versions, or a tied tensor twice. These are recognised,
and what is left out is told with its reason. Everything else stays, for ``check_tensors`` to
refuse.
"""

import re
from collections.abc import Collection
from dataclasses import replace

import torch
from torch import nn

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint
from qdc.frontend.held_in_parts import held_whole, require_shape
from qdc.ir.parts import Part
from qdc.models.decoder import Decoder
from qdc.models.network import Network

BUFFERS = r"(^|\.)(position_ids|token_type_ids|rotary_emb\.inv_freq)$"
"""Buffers that checkpoints of older versions hold; the module computes them."""
FREQUENCIES = "inv_freq"
COMPUTED = "a buffer that the model computes itself"
WRAPPER, COMPILED, BASE = "module.", "_orig_mod.", "model."
ROUNDED = 0.01
"""Relative difference of frequencies that a narrow dtype makes; bf16 rounds to 1 / 256."""


def unwrapped(key: str) -> str:
    """The name of a tensor without what DataParallel and ``torch.compile`` put into it."""
    parts = [part for part in key.split(".") if f"{part}." != COMPILED]
    return ".".join(parts).removeprefix(WRAPPER)


def match_own_names(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Let a checkpoint show its tensors under the names of a module built here.

    Raises:
        InvalidCheckpoint: two tensors claim one name, or frequencies of the rotary embedding are
            not those that the configuration gives.
    """
    first = {parameter: name for name, parameter in module.named_parameters()}
    every = module.named_parameters(remove_duplicate=False)
    owned = {name: first[parameter] for name, parameter in every}
    if set(checkpoint.headers) <= set(first.values()):
        return
    whole = held_whole(module)
    known = {*owned, *whole}
    claimed: dict[str, list[Part]] = {}
    left_out: dict[str, str] = {}
    twins: dict[str, str] = {}
    spare: list[str] = []
    for key in checkpoint.headers:
        name = _name(key, known)
        if isinstance(module, Network) and name not in known:
            name = module.alias(name)
            if name in owned and name in checkpoint.headers and name != key:
                twins[key] = owned[name]
                continue
        if name in owned:
            claimed.setdefault(name, []).append(Part(key))
        elif name in whole:
            require_shape(checkpoint, key, whole[name])
            for inner, part in whole[name].parts.items():
                claimed.setdefault(inner, []).append(replace(part, key=key))
        elif (reason := _left_out(module, name)) is not None:
            left_out[key] = reason
        elif re.search(BUFFERS, name):
            _check_frequencies(module, checkpoint, key)
            left_out[key] = COMPUTED
        else:
            spare.append(key)
    twice = [each.key for parts in claimed.values() if len(parts) > 1 for each in parts]
    if twice:
        raise InvalidCheckpoint(
            "tensors of the checkpoint have one place in the model",
            where=list(dict.fromkeys(twice)),
        )
    found: dict[str, str | Part] = {}
    for name, (stored,) in claimed.items():
        source = owned[name]
        if name == source or source not in claimed:
            found[source] = stored
        else:
            twins[stored.key] = source
    left_out |= {key: f"the same tensor as {source}" for key, source in twins.items()}
    checkpoint.rename({**found, **{key: key for key in spare}}, left_out, twins)


def _name(key: str, owned: Collection[str]) -> str:
    """The name of a key of the files in the module, or of what it holds in parts."""
    if key in owned:
        return key
    plain = unwrapped(key)
    return BASE + plain if plain not in owned and BASE + plain in owned else plain


def _left_out(module: nn.Module, name: str) -> str | None:
    """Why a tensor is not read that published checkpoints hold; None if that is not known."""
    known = module.left_out if isinstance(module, Network) else {}
    return next((reason for start, reason in known.items() if name.startswith(start)), None)


def _check_frequencies(module: nn.Module, checkpoint: Checkpoint, key: str) -> None:
    """Compare frequencies that a checkpoint was trained with with those of the module."""
    if not key.endswith(FREQUENCIES) or not isinstance(module, Decoder):
        return
    half = module.sizes.rotated_columns // 2
    expected = module.sizes.theta ** -(torch.arange(half, dtype=torch.float64) / half)
    found = checkpoint.tensor(key).to(torch.float64).flatten()
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=ROUNDED, atol=0):
        raise InvalidCheckpoint(
            "the checkpoint was trained with other frequencies of the rotary embedding than "
            f"config.json gives (base {module.sizes.theta:g})",
            where=[key],
            help="compare rope_theta and rope_scaling in config.json with the original",
        )
