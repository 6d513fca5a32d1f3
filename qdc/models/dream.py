"""Dream, DiffuCoder and Dream-Coder: the Qwen2.5 layout, all positions see all.

Position i of the logits predicts token i + 1, as in the autoregressive model that they were made
from. Source: shared facts on the ecosystem (A.3).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from qdc.ir.graph import ModelFacts
from qdc.models.configuration import Width
from qdc.models.decoder import DecoderConfig, Layout, dense_decoder
from qdc.models.family import COMPILES, Family, equals

MASK = 151666
TRAINED = 2048
"""Tokens of the context that the published models were trained on."""


class DreamConfig(DecoderConfig):
    """Fields of ``config.json``."""

    intermediate_size: Width
    max_position_embeddings: int = Field(default=131072, gt=0)
    rope_theta: float = Field(default=1000000.0, gt=0)
    mask_token_id: int = Field(default=MASK, ge=0)


def _build(fields: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    config = DreamConfig.model_validate(dict(fields))
    layout = Layout(biases=True, logits_shift=1)
    length = min(config.max_position_embeddings, TRAINED)
    return dense_decoder("dream", config, layout, config.intermediate_size, length)


DREAM = Family(
    name="dream",
    architectures=("DreamModel",),
    build=_build,
    published=("Dream-v0 Base, Instruct 7B", "DiffuCoder 7B", "Dream-Coder 7B"),
    attention="all positions",
    mask_token_id=MASK,
    logits_shift=1,
    proved=(equals("Qwen2ForCausalLM with is_causal=False"), COMPILES),
)
