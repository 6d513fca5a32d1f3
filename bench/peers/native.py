"""The embedded model as the Hugging Face model that libraries know how to walk.

LLaDA is a Llama block with full attention, so ``LlamaForCausalLM`` computes it once its attention
looks both ways. Libraries build causal masks, hide the last token or cache what they were given;
none of it can matter here, for the attention below ignores every mask. No sample is padded.
"""

from typing import Any

from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from qdc.models.decoder import Decoder

from .pair import Pair

LEAVES = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
"""Linears of a block: their name there, ours here."""
NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm"}
OUTER = {
    "model.embed_tokens": "model.transformer.wte",
    "model.norm": "model.transformer.ln_f",
    "lm_head": "model.transformer.ff_out",
}


class BidirectionalAttention(LlamaAttention):
    """Llama's attention over all positions, whatever mask it is handed."""

    def __init__(self, config: LlamaConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.is_causal = False

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """``hidden_states [batch, T, width]`` and the rest by name; the mask is dropped."""
        mixed: tuple[Tensor, Tensor] = super().forward(*args, **kwargs | {"attention_mask": None})
        return mixed


def names(layers: int) -> dict[str, str]:
    """Our path of every linear that is quantized, by its path in the native model."""
    return {
        f"model.layers.{index}.{theirs}": f"model.transformer.blocks.{index}.{ours}"
        for index in range(layers)
        for theirs, ours in LEAVES.items()
    }


def pair(original: Decoder) -> Pair:
    """Our module and the native one, and what a block of ours makes of an input."""
    inside = original.get_submodule("model.transformer")

    def embed(tokens: Tensor) -> Tensor:
        found: Tensor = inside.get_submodule("wte")(tokens)
        return found

    def block(index: int, read: Tensor) -> Tensor:
        found: Tensor = inside.get_submodule(f"blocks.{index}")(read, None)
        return found

    return Pair(original, build_native(original), names(original.sizes.blocks), embed, block)


def build_native(original: Decoder) -> LlamaForCausalLM:
    """Return the same function as ``original``, f32, in eval mode, its weights copied."""
    sizes = original.sizes
    build: Any = LlamaConfig  # Its annotations lack what every configuration takes.
    settings = build(
        vocab_size=sizes.rows,
        hidden_size=sizes.width,
        intermediate_size=sizes.hidden,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.key_heads or sizes.heads,
        max_position_embeddings=sizes.max_length,
        rms_norm_eps=sizes.eps,
        rope_parameters={"rope_type": "default", "rope_theta": sizes.theta},
        tie_word_embeddings=False,
        attn_implementation="sdpa",
        use_cache=False,
        pad_token_id=None,
    )
    native: LlamaForCausalLM = LlamaForCausalLM(settings)
    for index, layer in enumerate(native.model.layers):
        layer.self_attn = BidirectionalAttention(settings, index)
    pairs = dict(OUTER) | names(sizes.blocks)
    for index in range(sizes.blocks):
        for theirs, ours in NORMS.items():
            pairs[f"model.layers.{index}.{theirs}"] = f"model.transformer.blocks.{index}.{ours}"
    state = original.state_dict()
    native.load_state_dict(
        {f"{k}.weight": state[f"{v}.weight"].float().clone() for k, v in pairs.items()},
        strict=True,
    )
    native.train(False)
    return native
