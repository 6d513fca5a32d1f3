"""Fast-dLLM v2: the Qwen2.5 layout, block-causal, logits shifted by one; the 1.5B model is tied.

Source: shared facts on the ecosystem (A.1, A.4).
"""

from collections.abc import Mapping
from typing import Any

from pydantic import Field
from torch import nn

from qdc.ir.graph import ModelFacts
from qdc.models.configuration import Width
from qdc.models.decoder import DecoderConfig, Layout, dense_decoder
from qdc.models.family import COMPILES, Family, equals

MASK = 151665
BLOCK = 32


class FastDLLMConfig(DecoderConfig):
    """Fields of ``config.json``."""

    intermediate_size: Width
    rope_theta: float = Field(default=1000000.0, gt=0)
    mask_token_id: int = Field(default=MASK, ge=0)
    bd_size: int = Field(default=BLOCK, gt=0)
    """Tokens of a block of attention and diffusion."""


def _build(fields: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    config = FastDLLMConfig.model_validate(dict(fields))
    layout = Layout(biases=True, block=config.bd_size, logits_shift=1)
    length = config.max_position_embeddings
    return dense_decoder("fast-dllm", config, layout, config.intermediate_size, length)


FAST_DLLM = Family(
    name="fast-dllm",
    architectures=("Fast_dLLM_QwenForCausalLM",),
    build=_build,
    published=("Fast-dLLM v2 1.5B (tied), 7B",),
    attention=f"block-causal, bd_size of the configuration or {BLOCK}",
    mask_token_id=MASK,
    logits_shift=1,
    proved=(equals("Qwen2ForCausalLM with a block mask"), COMPILES),
)
