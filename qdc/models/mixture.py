"""Mixtures of experts on the Qwen3 layout: LLaDA-MoE and SDAR-MoE.

Source: shared facts on the ecosystem (A.1, A.4). Both route by softmax to the best experts of each
token; LLaDA-MoE takes their weights as they are, SDAR-MoE makes them add up to 1. The mask tokens
stand in the tokenizers, not in the published ``config.json``.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator
from torch import nn

from qdc.ir.graph import ModelFacts
from qdc.models.configuration import MOST_EXPERTS, Width
from qdc.models.decoder import (
    Decoder,
    DecoderConfig,
    GatedFeedForward,
    Layout,
    decoder_facts,
)
from qdc.models.experts import SparseFeedForward
from qdc.models.family import COMPILES, Family, equals
from qdc.models.sdar import BLOCK
from qdc.models.sdar import MASK as SDAR_MASK

LLADA_MOE_MASK = 156895


class MixtureConfig(DecoderConfig):
    """Fields of ``config.json`` that both families share."""

    num_experts: int = Field(gt=0, le=4096)
    num_experts_per_tok: int = Field(gt=0)
    attention_bias: Literal[False, None] = False

    @model_validator(mode="after")
    def _enough_experts(self) -> Self:
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(
                f"num_experts_per_tok {self.num_experts_per_tok} is above "
                f"num_experts {self.num_experts}"
            )
        if self.num_experts * self.num_hidden_layers > MOST_EXPERTS:
            raise ValueError(
                f"num_experts {self.num_experts} in {self.num_hidden_layers} blocks are more than "
                f"{MOST_EXPERTS} experts"
            )
        return self


class LLaDAMoEConfig(MixtureConfig):
    """Fields of LLaDA-MoE's ``config.json``; unpublished ways of routing are refused."""

    num_experts: int = Field(default=64, gt=0, le=4096)
    num_experts_per_tok: int = Field(default=8, gt=0)
    expert_intermediate_size: Width
    dense_intermediate_size: Width | None = None
    shared_expert_intermediate_size: None = None
    moe_layer_freq: tuple[Literal[0, 1], ...] | None = None
    """For each block 1 if it has experts; all have if not given."""
    max_position_embeddings: int = Field(default=8192, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    rope_theta: float = Field(default=50000.0, gt=0)
    mask_token_id: int = Field(default=LLADA_MOE_MASK, ge=0)
    norm_topk_prob: bool | None = False
    qk_layernorm: bool = True

    clip_qkv: None = None
    moe_router_score_function: Literal["softmax"] = "softmax"
    moe_router_enable_expert_bias: Literal[False] = False
    partial_rotary_factor: float = Field(default=1, ge=1, le=1)
    routed_scaling_factor: float | None = Field(default=None, ge=1, le=1)
    router_num_group: None = None
    router_topk_group: None = None

    @model_validator(mode="after")
    def _every_block_is_described(self) -> Self:
        kinds = self.moe_layer_freq
        if kinds is not None and len(kinds) != self.num_hidden_layers:
            raise ValueError(
                f"moe_layer_freq describes {len(kinds)} of {self.num_hidden_layers} blocks"
            )
        if kinds is not None and 0 in kinds and self.dense_intermediate_size is None:
            raise ValueError("some blocks are dense, and dense_intermediate_size is missing")
        return self

    def feed_forward(self, index: int) -> nn.Module:
        """Build the feed-forward of one block."""
        if self.moe_layer_freq is not None and not self.moe_layer_freq[index]:
            assert self.dense_intermediate_size is not None
            return GatedFeedForward(self.hidden_size, self.dense_intermediate_size)
        return SparseFeedForward(
            self.hidden_size,
            self.expert_intermediate_size,
            self.num_experts,
            self.num_experts_per_tok,
            normalized=bool(self.norm_topk_prob),
        )


class SDARMoEConfig(MixtureConfig):
    """Fields of SDAR-MoE's ``config.json``, which are those of Qwen3-MoE."""

    num_experts: int = Field(default=128, gt=0, le=4096)
    num_experts_per_tok: int = Field(default=8, gt=0)
    moe_intermediate_size: Width
    intermediate_size: Width | None = None
    decoder_sparse_step: int = Field(default=1, gt=0)
    mlp_only_layers: tuple[int, ...] | None = None
    head_dim: Width | None = 128
    rope_theta: float = Field(default=1000000.0, gt=0)
    mask_token_id: int = Field(default=SDAR_MASK, ge=0)
    block_size: int = Field(default=BLOCK, gt=0)
    norm_topk_prob: bool = True

    @model_validator(mode="after")
    def _dense_blocks_have_a_width(self) -> Self:
        dense = not all(map(self.has_experts, range(self.num_hidden_layers)))
        if dense and self.intermediate_size is None:
            raise ValueError("some blocks are dense, and intermediate_size is missing")
        return self

    def has_experts(self, index: int) -> bool:
        """Whether the feed-forward of this block is sparse."""
        return index not in (self.mlp_only_layers or ()) and not (
            (index + 1) % self.decoder_sparse_step
        )

    def feed_forward(self, index: int) -> nn.Module:
        """Build the feed-forward of one block."""
        if not self.has_experts(index):
            assert self.intermediate_size is not None
            return GatedFeedForward(self.hidden_size, self.intermediate_size)
        return SparseFeedForward(
            self.hidden_size,
            self.moe_intermediate_size,
            self.num_experts,
            self.num_experts_per_tok,
            normalized=self.norm_topk_prob,
        )


def _llada_moe(fields: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    config = LLaDAMoEConfig.model_validate(dict(fields))
    layout = Layout(head_norms=config.qk_layernorm)
    module = Decoder(config, layout, config.feed_forward)
    return module, decoder_facts("llada-moe", config, layout, config.max_position_embeddings)


def _sdar_moe(fields: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    config = SDARMoEConfig.model_validate(dict(fields))
    layout = Layout(head_norms=True, block=config.block_size)
    module = Decoder(config, layout, config.feed_forward)
    return module, decoder_facts("sdar-moe", config, layout, config.max_position_embeddings)


LLADA_MOE = Family(
    name="llada-moe",
    architectures=("LLaDAMoEModelLM",),
    build=_llada_moe,
    published=("LLaDA-MoE-7B-A1B Base, Instruct",),
    attention="all positions",
    mask_token_id=LLADA_MOE_MASK,
    logits_shift=0,
    proved=(equals("Qwen3MoeForCausalLM with is_causal=False"), COMPILES),
)
SDAR_MOE = Family(
    name="sdar-moe",
    architectures=("SDARMoeForCausalLM",),
    build=_sdar_moe,
    published=("SDAR 30B-A3B Chat, Sci",),
    attention=f"block-causal, block_size of the configuration or {BLOCK}",
    mask_token_id=SDAR_MASK,
    logits_shift=0,
    proved=(equals("Qwen3MoeForCausalLM with a block mask"), COMPILES),
)
