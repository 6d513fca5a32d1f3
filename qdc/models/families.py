"""The model families that have an implementation of our own, chosen by ``architectures``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from qdc.errors import UnsupportedModel
from qdc.ir.graph import ModelFacts
from qdc.models.llada import LLaDA, LLaDAConfig


@dataclass(frozen=True)
class Family:
    """How to build one family, and what is known of it."""

    name: str
    architectures: tuple[str, ...]
    build: Callable[[Mapping[str, Any]], tuple[nn.Module, ModelFacts]]


def _llada(config: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    parsed = LLaDAConfig.model_validate(dict(config))
    facts = ModelFacts(
        family="llada",
        mask_token_id=parsed.mask_token_id,
        vocabulary=parsed.embeddings,
        max_length=parsed.max_sequence_length,
    )
    return LLaDA(parsed), facts


FAMILIES: tuple[Family, ...] = (Family("llada", ("LLaDAModelLM",), _llada),)


def build(config: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    """Build the model of a configuration on the meta device, without weights.

    Raises:
        UnsupportedModel: no family claims its ``architectures``, or a field has a value that the
            family's implementation does not cover.
    """
    claimed = config.get("architectures")
    names = [str(n) for n in claimed] if isinstance(claimed, list) else []
    for family in FAMILIES:
        if set(names) & set(family.architectures):
            return _build(family, config)
    supported = ", ".join(a for family in FAMILIES for a in family.architectures)
    raise UnsupportedModel(
        f"no model family here implements {', '.join(names) or 'a model without architectures'}",
        help=f"supported architectures: {supported}; code beside a checkpoint is never run",
    )


def _build(family: Family, config: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    try:
        with torch.device("meta"):
            module, facts = family.build(config)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors()
        ]
        raise UnsupportedModel(
            f"config.json asks for a {family.name} variant that is not implemented",
            where=problems,
        ) from error
    return module.eval().requires_grad_(False), facts
