"""LLaDA: a Llama-shaped transformer with full bidirectional attention, under its published names.

Source: shared facts on LLaDA-8B (ecosystem A.2). Position i of the logits predicts token i.
The forward pass is free of shape arithmetic and of branches on values, so plain ``torch.fx``
traces it; every tensor of the published checkpoints loads with ``strict=True``.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from qdc.ir.graph import ModelFacts
from qdc.models.configuration import Depth, ModelConfig, Width
from qdc.models.family import COMPILES, Family, equals
from qdc.models.layers import Attention, RMSNorm, Rotary, embedding


class LLaDAConfig(ModelConfig):
    """The fields of ``config.json`` that decide the network; unpublished variants are refused."""

    d_model: Width
    n_layers: Depth
    n_heads: Width
    n_kv_heads: Width | None = None
    mlp_hidden_size: Width
    vocab_size: Width
    embedding_size: Width | None = None
    max_sequence_length: int = Field(default=4096, gt=0)
    rope_theta: float = Field(default=500000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-5, gt=0)
    mask_token_id: int = Field(ge=0)
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    block_type: Literal["llama"] = "llama"
    block_group_size: Literal[1] = 1
    activation_type: Literal["silu"] = "silu"
    layer_norm_type: Literal["rms"] = "rms"
    layer_norm_with_affine: Literal[True] = True
    rope: Literal[True] = True
    rope_full_precision: Literal[True] = True
    alibi: Literal[False] = False
    scale_logits: Literal[False] = False
    input_emb_norm: Literal[False] = False
    weight_tying: Literal[False] = False
    include_bias: Literal[False] = False
    include_qkv_bias: Literal[False, None] = False
    attention_layer_norm: Literal[False] = False
    clip_qkv: None = None

    @model_validator(mode="after")
    def _shapes_agree(self) -> "LLaDAConfig":
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 2:
            raise ValueError(
                f"d_model {self.d_model} does not split into {self.n_heads} heads of even width"
            )
        if self.n_heads % self.key_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is no multiple of n_kv_heads {self.key_heads}"
            )
        if self.mask_token_id >= self.embeddings:
            raise ValueError(
                f"mask_token_id {self.mask_token_id} is outside the {self.embeddings} embeddings"
            )
        return self

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.n_kv_heads or self.n_heads

    @property
    def embeddings(self) -> int:
        """Rows of the embedding and of the LM head."""
        return self.embedding_size or self.vocab_size


class LLaDABlock(nn.Module):
    """One transformer block: attention, then a gated feed-forward, both on the residual stream."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        width, hidden = config.d_model, config.mlp_hidden_size
        self.head_width = width // config.n_heads
        key_width = config.key_heads * self.head_width
        self.attn_norm = RMSNorm(width, config.rms_norm_eps)
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, key_width, bias=False)
        self.v_proj = nn.Linear(width, key_width, bias=False)
        self.rotary = Rotary(self.head_width, config.rope_theta)
        self.attention = Attention()
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ff_norm = RMSNorm(width, config.rms_norm_eps)
        self.ff_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.ff_out = nn.Linear(hidden, width, bias=False)

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, d_model] -> [batch, T, d_model]``."""
        normed = self.attn_norm(hidden)
        heads = (-1, self.head_width)
        query = self.rotary(self.q_proj(normed).unflatten(-1, heads))
        key = self.rotary(self.k_proj(normed).unflatten(-1, heads))
        value = self.v_proj(normed).unflatten(-1, heads)
        hidden = hidden + self.attn_out(self.attention(query, key, value, attention_mask))
        normed = self.ff_norm(hidden)
        added: Tensor = self.ff_out(F.silu(self.ff_proj(normed)) * self.up_proj(normed))
        return hidden + added


class _Transformer(nn.Module):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.wte = embedding(config.embeddings, config.d_model)
        self.blocks = nn.ModuleList(LLaDABlock(config) for _ in range(config.n_layers))
        self.ln_f = RMSNorm(config.d_model, config.rms_norm_eps)
        self.ff_out = nn.Linear(config.d_model, config.embeddings, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        hidden = self.wte(input_ids)
        for block in self.blocks:
            hidden = block(hidden, attention_mask)
        logits: Tensor = self.ff_out(self.ln_f(hidden))
        return logits


class _Body(nn.Module):
    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.transformer = _Transformer(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        logits: Tensor = self.transformer(input_ids, attention_mask)
        return logits


class LLaDA(nn.Module):
    """The whole model; ``model.transformer.*`` are the published key names."""

    def __init__(self, config: LLaDAConfig) -> None:
        super().__init__()
        self.config = config
        self.model = _Body(config)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding) ``-> [batch, T, vocab]`` logits."""
        logits: Tensor = self.model(input_ids, attention_mask)
        return logits


def _build(fields: Mapping[str, Any]) -> tuple[nn.Module, ModelFacts]:
    config = LLaDAConfig.model_validate(dict(fields))
    facts = ModelFacts(
        family="llada",
        mask_token_id=config.mask_token_id,
        vocabulary=config.embeddings,
        max_length=config.max_sequence_length,
    )
    return LLaDA(config), facts


LLADA = Family(
    name="llada",
    architectures=("LLaDAModelLM",),
    build=_build,
    published=("LLaDA Base, Instruct, 1.5 8B",),
    attention="all positions",
    mask_token_id=None,
    logits_shift=0,
    proved=(equals("LlamaForCausalLM, keys renamed, with is_causal=False"), COMPILES),
)
