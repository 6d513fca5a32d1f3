"""Which front end takes a model: our own implementation through fx, or the class of transformers.

``auto`` takes our own where there is one. An artifact names the front end that made it, and is
loaded through the same one.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import UnknownName
from qdc.frontend.exported import trace_native
from qdc.frontend.naming import match_tensors
from qdc.frontend.native import NativeModel, build_native, looks_back, native_facts
from qdc.frontend.native_config import unused_fields
from qdc.frontend.own_names import match_own_names
from qdc.frontend.tracer import Program, trace
from qdc.ir.facts import ModelFacts
from qdc.models.families import BUILT_IN, Families
from qdc.models.other_fields import unused

FrontEnd = Literal["fx", "export"]
Choice = Literal["auto", "fx", "export"]


def parse_choice(name: str) -> Choice:
    """Check an option's value. Raises ``UnknownName``."""
    for known in get_args(Choice):
        if name == known:
            return known  # type: ignore[no-any-return]
    raise UnknownName(f"no front end is called {name!r}", help="known: auto, fx, export")


def choose(
    config: Mapping[str, Any], choice: Choice = "auto", families: Families = BUILT_IN
) -> FrontEnd:
    """Decide by ``architectures``: a family that is known, if refused, is not exported either."""
    if choice != "auto":
        return choice
    known = families.find(config) is not None or families.refusal(config) is not None
    return "fx" if known else "export"


def build_module(
    config: Mapping[str, Any],
    front_end: FrontEnd,
    families: Families = BUILT_IN,
    *,
    causal: bool = False,
) -> nn.Module:
    """Build a model without weights: ``forward(input_ids, attention_mask=None)``.

    A decoder of transformers looks both ways unless ``causal``: see ``looks_back``.

    Raises:
        UnsupportedModel: the front end has no implementation of it.
    """
    if front_end == "export":
        return build_native(config, causal=causal)
    return families.build(config)[0]


def read_facts(
    config: Mapping[str, Any],
    folder: Path,
    front_end: FrontEnd,
    families: Families = BUILT_IN,
) -> ModelFacts:
    """What configuration and tokenizer say of a model. Raises ``UnsupportedModel``."""
    if front_end == "export":
        return native_facts(build_native(config, causal=looks_back(config, folder)), folder)
    return families.build(config)[1]


def trace_checkpoint(
    checkpoint: Checkpoint, front_end: FrontEnd, families: Families = BUILT_IN
) -> Program:
    """Build and trace the model of a checkpoint, which shows its tensors by the model's names.

    Raises:
        UnsupportedModel: the front end has no implementation, or cannot trace it.
        InvalidCheckpoint: two tensors claim one place.
    """
    if front_end == "fx":
        module, facts = families.build(checkpoint.config)
        checkpoint.unused_fields = families.unused(checkpoint.config)
        checkpoint.assumed_fields = families.assumed(checkpoint.config)
        match_own_names(module, checkpoint)
        return trace(module, facts, checkpoint)
    causal = looks_back(checkpoint.config, checkpoint.folder)
    native = build_native(checkpoint.config, causal=causal)
    checkpoint.unused_fields = unused(unused_fields(checkpoint.config), native.kind)
    facts = native_facts(native, checkpoint.folder)
    match_tensors(native, checkpoint)
    return trace_native(native, facts, checkpoint)


def show_by_name(module: nn.Module, checkpoint: Checkpoint) -> None:
    """Let a checkpoint show its tensors by the names of a module that a front end has built.

    Raises:
        InvalidCheckpoint: two tensors claim one place, or tied ones are not equal.
    """
    if isinstance(module, NativeModel):
        match_tensors(module, checkpoint)
    else:
        match_own_names(module, checkpoint)
    checkpoint.check_twins()


def holder(module: nn.Module) -> nn.Module:
    """The module whose state is named as the tensors of a checkpoint are."""
    return module.body if isinstance(module, NativeModel) else module
