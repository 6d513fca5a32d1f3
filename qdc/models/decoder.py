"""The decoder layout of Qwen2 and Qwen3 under its published key names, for every family on it.

What differs between the families is a ``Layout`` (biases, head norms, who sees whom) and the
feed-forward, which the caller makes. The forward pass is free of shape arithmetic and of branches
on values, so plain ``torch.fx`` traces it; every tensor of the published checkpoints loads with
``strict=True``. Source: shared facts on the ecosystem (A.3, A.4).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, Self

import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from qdc.ir.graph import ModelFacts
from qdc.models.configuration import Depth, ModelConfig, Width
from qdc.models.layers import Attention, RMSNorm, Rotary, embedding


class RopeParameters(BaseModel):
    """Rotary embedding as newer files write it; only the plain one is implemented."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    rope_type: Literal["default"] = "default"
    rope_theta: float | None = Field(default=None, gt=0)


class DecoderConfig(ModelConfig):
    """Fields of ``config.json`` that all families on this layout share."""

    hidden_size: Width
    num_hidden_layers: Depth
    num_attention_heads: Width
    num_key_value_heads: Width | None = None
    head_dim: Width | None = None
    vocab_size: Width
    max_position_embeddings: int = Field(default=32768, gt=0)
    rope_theta: float = Field(default=10000.0, gt=0)
    rms_norm_eps: float = Field(default=1e-6, gt=0)
    mask_token_id: int = Field(ge=0)
    tie_word_embeddings: bool = False

    hidden_act: Literal["silu"] = "silu"
    use_sliding_window: Literal[False, None] = False
    rope_scaling: RopeParameters | None = None
    rope_parameters: RopeParameters | None = None
    layer_types: tuple[Literal["full_attention"], ...] | None = None

    @model_validator(mode="before")
    @classmethod
    def _theta_of_the_newer_field(cls, fields: Any) -> Any:
        rope = fields.get("rope_parameters")
        theta = rope.get("rope_theta") if isinstance(rope, dict) else None
        return fields if theta is None else {**fields, "rope_theta": theta}

    @model_validator(mode="after")
    def _shapes_agree(self) -> Self:
        heads, key_heads = self.num_attention_heads, self.key_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} does not split into {heads} heads")
        if self.head_width % 2:
            raise ValueError(f"heads of odd width {self.head_width} cannot be rotated")
        if heads % key_heads:
            raise ValueError(
                f"num_attention_heads {heads} is no multiple of num_key_value_heads {key_heads}"
            )
        if self.mask_token_id >= self.vocab_size:
            raise ValueError(
                f"mask_token_id {self.mask_token_id} is outside the {self.vocab_size} embeddings"
            )
        return self

    @property
    def key_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_key_value_heads or self.num_attention_heads

    @property
    def head_width(self) -> int:
        """Columns of a head; the heads together need not be as wide as the residual stream."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


class Layout(NamedTuple):
    """What a family fixes about its blocks, whatever its configuration says."""

    biases: bool = False
    """Whether the q, k and v projections have biases."""
    head_norms: bool = False
    """Whether queries and keys are normed head by head before they are rotated."""
    block: int | None = None
    """Tokens of an attention block, see ``Attention``; None lets all positions see all."""
    logits_shift: int = 0
    """1 if position i of the logits predicts token i + 1."""


class SelfAttention(nn.Module):
    """Projections, head norms, rotation, attention, and back to the residual stream."""

    def __init__(self, config: DecoderConfig, layout: Layout) -> None:
        super().__init__()
        width, self.head_width = config.hidden_size, config.head_width
        query_width = config.num_attention_heads * self.head_width
        key_width = config.key_heads * self.head_width
        self.q_proj = nn.Linear(width, query_width, bias=layout.biases)
        self.k_proj = nn.Linear(width, key_width, bias=layout.biases)
        self.v_proj = nn.Linear(width, key_width, bias=layout.biases)
        if layout.head_norms:
            self.q_norm = RMSNorm(self.head_width, config.rms_norm_eps)
            self.k_norm = RMSNorm(self.head_width, config.rms_norm_eps)
        self.head_norms = layout.head_norms
        self.rotary = Rotary(self.head_width, config.rope_theta)
        self.attention = Attention(layout.block)
        self.o_proj = nn.Linear(query_width, width, bias=False)

    def forward(self, normed: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, hidden_size] -> [batch, T, hidden_size]``."""
        heads = (-1, self.head_width)
        query = self.q_proj(normed).unflatten(-1, heads)
        key = self.k_proj(normed).unflatten(-1, heads)
        value = self.v_proj(normed).unflatten(-1, heads)
        if self.head_norms:
            query, key = self.q_norm(query), self.k_norm(key)
        mixed = self.attention(self.rotary(query), self.rotary(key), value, attention_mask)
        out: Tensor = self.o_proj(mixed)
        return out


class GatedFeedForward(nn.Module):
    """The dense feed-forward: ``down(silu(gate(x)) * up(x))``."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, normed: Tensor) -> Tensor:
        """``[..., width] -> [..., width]``."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(normed)) * self.up_proj(normed))
        return out


class DecoderBlock(nn.Module):
    """One transformer block: attention, then a feed-forward, both on the residual stream."""

    def __init__(self, config: DecoderConfig, layout: Layout, feed_forward: nn.Module) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layout)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward

    def forward(self, hidden: Tensor, attention_mask: Tensor | None) -> Tensor:
        """``[batch, T, hidden_size] -> [batch, T, hidden_size]``."""
        hidden = hidden + self.self_attn(self.input_layernorm(hidden), attention_mask)
        added: Tensor = self.mlp(self.post_attention_layernorm(hidden))
        return hidden + added


class _Body(nn.Module):
    def __init__(
        self, config: DecoderConfig, layout: Layout, feed_forward: Callable[[int], nn.Module]
    ) -> None:
        super().__init__()
        self.embed_tokens = embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderBlock(config, layout, feed_forward(index))
            for index in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        hidden = self.embed_tokens(input_ids)
        for layer in self.layers:
            hidden = layer(hidden, attention_mask)
        normed: Tensor = self.norm(hidden)
        return normed


class Decoder(nn.Module):
    """The whole model; ``model.*`` and ``lm_head`` are the published key names."""

    def __init__(
        self, config: DecoderConfig, layout: Layout, feed_forward: Callable[[int], nn.Module]
    ) -> None:
        """Build without weights.

        Args:
            config: the sizes.
            layout: what the family fixes.
            feed_forward: makes the ``mlp`` of the block of this number, a module
                ``[batch, T, hidden_size] -> [batch, T, hidden_size]``.
        """
        super().__init__()
        self.config = config
        self.logits_shift = layout.logits_shift
        self.model = _Body(config, layout, feed_forward)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """``i64[batch, T]``, mask ``[batch, T]`` (0 = padding) ``-> [batch, T, vocab]`` logits.

        They are as the published code gives them, shifted where the layout says so.
        """
        logits: Tensor = self.lm_head(self.model(input_ids, attention_mask))
        return logits


def decoder_facts(
    family: str, config: DecoderConfig, layout: Layout, max_length: int
) -> ModelFacts:
    """What a graph says about a model of this layout."""
    return ModelFacts(
        family=family,
        mask_token_id=config.mask_token_id,
        vocabulary=config.vocab_size,
        max_length=max_length,
        logits_shift=layout.logits_shift,
        attention_block=layout.block,
    )


def dense_decoder(
    family: str, config: DecoderConfig, layout: Layout, hidden: int, max_length: int
) -> tuple[nn.Module, ModelFacts]:
    """Build a decoder whose feed-forwards are all dense, ``hidden`` wide, and its facts."""
    module = Decoder(config, layout, lambda _: GatedFeedForward(config.hidden_size, hidden))
    return module, decoder_facts(family, config, layout, max_length)
