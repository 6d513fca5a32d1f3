"""SDAR and TraDo: the Qwen3 layout, a position sees its block and the blocks before it.

Source: shared facts on the ecosystem (A.1, A.4). The mask token stands in the tokenizer, not in the
published ``config.json``.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field
from torch import nn

from qdc.ir.graph import ModelFacts
from qdc.models.configuration import Width
from qdc.models.decoder import DecoderConfig, Layout, dense_decoder
from qdc.models.family import COMPILES, Family, equals

MASK = 151669
BLOCK = 4


class SDARConfig(DecoderConfig):
    """Fields of ``config.json``."""

    intermediate_size: Width
    head_dim: Width | None = 128
    rope_theta: float = Field(default=1000000.0, gt=0)
    mask_token_id: int = Field(default=MASK, ge=0)
    block_size: int = Field(default=BLOCK, gt=0)
    attention_bias: Literal[False] = False


def _build(fields: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    config = SDARConfig.model_validate(dict(fields))
    layout = Layout(head_norms=True, block=config.block_size)
    length = config.max_position_embeddings
    return dense_decoder("sdar", config, layout, config.intermediate_size, length)


SDAR = Family(
    name="sdar",
    architectures=("SDARForCausalLM",),
    build=_build,
    published=("SDAR 1.7B, 4B, 8B Chat", "TraDo 4B, 8B"),
    attention=f"block-causal, block_size of the configuration or {BLOCK}",
    mask_token_id=MASK,
    logits_shift=0,
    proved=(equals("Qwen3ForCausalLM with a block mask"), COMPILES),
)
