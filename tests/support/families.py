"""Tiny random checkpoints of every family, and the transformers class that each must equal.

A case is a ``config.json`` under the published field names, the published tensor names, and how the
same weights go into a native class. Nothing here is derived from our own implementations. A family
of the one decoder that has no case fails ``tests/models/test_equality.py``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from qdc.models.diffusion_gemma import CanvasFamily
from qdc.models.families import FAMILIES
from tests.support.checkpoints import EMBEDDED, VOCABULARY, published_shapes, write_model
from tests.support.llada2 import Llada2, fused_state, llada2_shapes, named_flat, split_state

__all__ = [
    "CASES", "EMBEDDED", "TABLES", "Case", "decoder_config", "decoder_shapes", "write_family",
]  # fmt: skip

TABLES = tuple(family for family in FAMILIES if not isinstance(family, CanvasFamily))
"""The families of the one decoder; that with a canvas has cases in ``tests.support.canvas``."""

Shapes = dict[str, tuple[int, ...]]
State = dict[str, Tensor]
MASK = 1
TOLERANCE = 1e-5
"""Largest difference in fp32 logits from the native class."""


def as_published(config: Mapping[str, Any], state: State) -> State:
    """The same state: most families have the tensors of their checkpoints."""
    return dict(state)


@dataclass(frozen=True)
class Case:
    """One tiny model."""

    family: str
    """Name of its ``Family``."""
    config: Mapping[str, Any]
    """``config.json``."""
    shapes: Callable[[Mapping[str, Any]], Shapes]
    """Every published tensor name, with its shape."""
    native: Callable[[Mapping[str, Any]], nn.Module]
    """The transformers class of such a configuration, with any weights."""
    convert: Callable[[State], State] = dict
    """Published state to the state of the native class."""
    split: Callable[[Mapping[str, Any], State], State] = as_published
    """Published state to that of the family here, where it holds more tensors; with the config."""
    fuse: Callable[[Mapping[str, Any], State], State] = as_published
    """The other way round."""
    block: int | None = None
    """Tokens of an attention block, for families that are not fully bidirectional."""
    seed: int = 0
    """Of the weights."""
    kept: tuple[str, ...] = ()
    """Ends of the names of matrices that are never quantized."""

    def native_model(self, state: State) -> nn.Module:
        """The native class with these published tensors, loaded strictly, in fp32."""
        model = self.native(self.config)
        state = {name: tensor.float() for name, tensor in state.items()}
        model.load_state_dict(self.convert(state), strict=True)
        return model.eval()

    def native_logits(self, model: nn.Module, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        """Logits ``[batch, T, vocabulary]``; ``mask`` is ``[batch, T]``, 0 hides."""
        if self.block is not None:
            number = torch.arange(tokens.shape[1]) // self.block
            seen = (number[:, None] >= number[None, :]).expand(len(tokens), 1, -1, -1)
            mask = seen if mask is None else seen & mask.bool()[:, None, None, :]
        logits: Tensor = model(input_ids=tokens, attention_mask=mask).logits
        return logits


def write_family(folder: Path, case: Case, seed: int | None = None, **options: Any) -> Path:
    """Write a random checkpoint of a case and return its folder; options as ``write_model``."""
    config, seed = dict(case.config), case.seed if seed is None else seed
    return write_model(folder, config, case.shapes(config), seed=seed, **options)


def decoder_config(architecture: str, **fields: Any) -> dict[str, Any]:
    """A ``config.json`` in the Qwen layout with fields changed or added."""
    return {
        "architectures": [architecture],
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 160,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "mask_token_id": MASK,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "use_sliding_window": False,
        "rope_scaling": None,
        **fields,
    }


def decoder_shapes(
    config: Mapping[str, Any], *, biases: bool = False, head_norms: bool = False, mlp: bool = True
) -> Shapes:
    """Published tensor names of the Qwen layout; without ``mlp`` for who adds other ones."""
    width, vocab = config["hidden_size"], config["vocab_size"]
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head = config.get("head_dim") or width // heads
    shapes: Shapes = {"model.embed_tokens.weight": (vocab, width)}
    for index in range(config["num_hidden_layers"]):
        block = f"model.layers.{index}"
        shapes[f"{block}.input_layernorm.weight"] = (width,)
        for name, rows in (("q", heads), ("k", key_heads), ("v", key_heads)):
            shapes[f"{block}.self_attn.{name}_proj.weight"] = (rows * head, width)
            if biases:
                shapes[f"{block}.self_attn.{name}_proj.bias"] = (rows * head,)
        if head_norms:
            shapes[f"{block}.self_attn.q_norm.weight"] = (head,)
            shapes[f"{block}.self_attn.k_norm.weight"] = (head,)
        shapes[f"{block}.self_attn.o_proj.weight"] = (width, heads * head)
        shapes[f"{block}.post_attention_layernorm.weight"] = (width,)
        if mlp:
            hidden = config["intermediate_size"]
            shapes[f"{block}.mlp.gate_proj.weight"] = (hidden, width)
            shapes[f"{block}.mlp.up_proj.weight"] = (hidden, width)
            shapes[f"{block}.mlp.down_proj.weight"] = (width, hidden)
    shapes["model.norm.weight"] = (width,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (vocab, width)
    return shapes


def native_fields(config: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """What a native configuration takes of a published one in the Qwen layout."""
    taken = (
        "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps",
        "tie_word_embeddings",
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    return {name: config[name] for name in taken} | {"rope_parameters": rope, **fields}


def _qwen2(config: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = Qwen2ForCausalLM(Qwen2Config(**native_fields(config, is_causal=False)))
    return model


def _llama_blocks(config: Mapping[str, Any]) -> nn.Module:
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**native_fields(config)))
    return model


def _qwen3(config: Mapping[str, Any]) -> nn.Module:
    fields = native_fields(config, head_dim=config["head_dim"])
    model: nn.Module = Qwen3ForCausalLM(Qwen3Config(**fields))
    return model


def _qwen3_moe(config: Mapping[str, Any]) -> nn.Module:
    heads, layers = config["num_attention_heads"], config["num_hidden_layers"]
    fields = {
        "num_experts": config["num_experts"],
        "num_experts_per_tok": config["num_experts_per_tok"],
        "norm_topk_prob": config["norm_topk_prob"],
        "moe_intermediate_size": _expert_width(config),
        "intermediate_size": config.get("dense_intermediate_size", 1),
        "mlp_only_layers": [index for index in range(layers) if _is_dense(config, index)],
        "head_dim": config.get("head_dim", config["hidden_size"] // heads),
        "is_causal": "block_size" in config,  # where it is, a mask takes its place
    }
    model: nn.Module = Qwen3MoeForCausalLM(Qwen3MoeConfig(**native_fields(config, **fields)))
    return model


def _is_dense(config: Mapping[str, Any], index: int) -> bool:
    return "moe_layer_freq" in config and not config["moe_layer_freq"][index]


def _expert_width(config: Mapping[str, Any]) -> int:
    width: int = config.get("expert_intermediate_size") or config["moe_intermediate_size"]
    return width


def _llama(config: Mapping[str, Any]) -> nn.Module:
    fields = {
        "hidden_size": config["d_model"],
        "intermediate_size": config["mlp_hidden_size"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config["n_kv_heads"],
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_sequence_length"],
        "rms_norm_eps": config["rms_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "is_causal": False,
        "tie_word_embeddings": False,
    }
    model: nn.Module = LlamaForCausalLM(LlamaConfig(**fields))
    return model


LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "q_proj": "self_attn.q_proj",
    "k_proj": "self_attn.k_proj",
    "v_proj": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
LLAMA_OUTER_NAMES = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}


def _llama_state(state: State) -> State:
    return {_llama_name(name): tensor for name, tensor in state.items()}


def _llama_name(name: str) -> str:
    match name.removeprefix("model.transformer.").split("."):
        case ["blocks", index, leaf, role]:
            return f"model.layers.{index}.{LLAMA_NAMES[leaf]}.{role}"
        case [leaf, role]:
            return f"{LLAMA_OUTER_NAMES[leaf]}.{role}"
    raise ValueError(name)


def _tied_state(state: State) -> State:
    """A published tied checkpoint has no head; the native class names it."""
    return {**state, "lm_head.weight": state["model.embed_tokens.weight"]}


def _plain_shapes(config: Mapping[str, Any]) -> Shapes:
    return decoder_shapes(config)


def _biased_shapes(config: Mapping[str, Any]) -> Shapes:
    return decoder_shapes(config, biases=True)


def _normed_shapes(config: Mapping[str, Any]) -> Shapes:
    return decoder_shapes(config, head_norms=True)


def _moe_shapes(config: Mapping[str, Any]) -> Shapes:
    """The Qwen3 layout with a router and the projections of every expert under its number."""
    shapes = decoder_shapes(config, head_norms=True, mlp=False)
    width = config["hidden_size"]
    for index in range(config["num_hidden_layers"]):
        mlp = f"model.layers.{index}.mlp"
        if _is_dense(config, index):
            shapes |= _gated_shapes(mlp, width, config["dense_intermediate_size"])
            continue
        shapes[f"{mlp}.gate.weight"] = (config["num_experts"], width)
        for expert in range(config["num_experts"]):
            shapes |= _gated_shapes(f"{mlp}.experts.{expert}", width, _expert_width(config))
    return shapes


def _gated_shapes(path: str, width: int, hidden: int) -> Shapes:
    return {
        f"{path}.gate_proj.weight": (hidden, width),
        f"{path}.up_proj.weight": (hidden, width),
        f"{path}.down_proj.weight": (width, hidden),
    }


def stacked_state(state: State) -> State:
    """The native class stacks its experts, and each expert's gate and up projection."""
    fused = {name: tensor for name, tensor in state.items() if ".experts." not in name}
    for path in dict.fromkeys(n.split(".experts.")[0] for n in state if ".experts." in n):
        numbers = {n.split(".")[5] for n in state if n.startswith(f"{path}.experts.")}
        experts = [f"{path}.experts.{number}" for number in sorted(numbers, key=int)]
        pairs = [[state[f"{e}.{leaf}_proj.weight"] for leaf in ("gate", "up")] for e in experts]
        fused[f"{path}.experts.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in pairs])
        downs = [state[f"{expert}.down_proj.weight"] for expert in experts]
        fused[f"{path}.experts.down_proj"] = torch.stack(downs)
    return fused


def _llada_shapes(config: Mapping[str, Any]) -> Shapes:
    return published_shapes(dict(config))


LLADA_MOE: dict[str, Any] = {
    "model_type": "llada",
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "expert_intermediate_size": 24,
    "norm_topk_prob": False,
    "qk_layernorm": True,
}
_mixture = partial(
    Case,
    shapes=_moe_shapes,
    native=_qwen3_moe,
    convert=stacked_state,
    kept=("mlp.gate.weight",),
)
CASES: dict[str, Case] = {
    "llada": Case(
        family="llada",
        config={
            "architectures": ["LLaDAModelLM"],
            "model_type": "llada",
            "d_model": 32,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 4,
            "mlp_hidden_size": 160,
            "vocab_size": VOCABULARY,
            "embedding_size": VOCABULARY,
            "max_sequence_length": 64,
            "rope_theta": 500000.0,
            "rms_norm_eps": 1e-5,
            "mask_token_id": MASK,
        },
        shapes=_llada_shapes,
        native=_llama,
        convert=_llama_state,
    ),
    "dream": Case(
        family="dream",
        config=decoder_config("DreamModel", model_type="Dream"),
        shapes=_biased_shapes,
        native=_qwen2,
    ),
    "sdar": Case(
        family="sdar",
        config=decoder_config("SDARForCausalLM", model_type="sdar", head_dim=12, block_size=4),
        shapes=_normed_shapes,
        native=_qwen3,
        block=4,
    ),
    "fast-dllm": Case(
        family="fast-dllm",
        config=decoder_config("Fast_dLLM_QwenForCausalLM", bd_size=8),
        shapes=_biased_shapes,
        native=_qwen2,
        block=8,
    ),
    "fast-dllm tied": Case(
        family="fast-dllm",
        config=decoder_config("Fast_dLLM_QwenForCausalLM", bd_size=8, tie_word_embeddings=True),
        shapes=_biased_shapes,
        native=_qwen2,
        convert=_tied_state,
        block=8,
    ),
    "llada-moe": _mixture(
        family="llada-moe",
        config=decoder_config(
            "LLaDAMoEModelLM",
            **LLADA_MOE,
            num_key_value_heads=4,
            rope_theta=50000.0,
        ),
    ),
    "llada-moe with a dense block": _mixture(
        family="llada-moe",
        config=decoder_config(
            "LLaDAMoEModelLM",
            **LLADA_MOE,
            dense_intermediate_size=40,
            moe_layer_freq=[0, 1],
        ),
    ),
    "sdar-moe": _mixture(
        family="sdar-moe",
        config=decoder_config(
            "SDARMoeForCausalLM",
            model_type="sdar_moe",
            head_dim=12,
            block_size=4,
            num_experts=4,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        block=4,
    ),
    "llada2": Case(
        family="llada2",
        config=decoder_config(
            "LLaDA2MoeModelLM",
            model_type="llada2_moe",
            head_dim=12,
            partial_rotary_factor=0.5,
            rotary_dim=6,
            block_size=8,
            first_k_dense_replace=1,
            num_experts=8,
            num_experts_per_tok=3,
            num_shared_experts=2,
            n_group=4,
            topk_group=2,
            routed_scaling_factor=2.5,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        shapes=llada2_shapes,
        native=Llada2,
        convert=named_flat,
        split=split_state,
        fuse=fused_state,
        block=8,
        seed=1,  # with 0 products in 16 bits send a token to another expert
        kept=("mlp.gate.weight",),
    ),
    "stable-diffcoder": Case(
        family="stable-diffcoder",
        config=decoder_config(
            "StableDiffcoderForCausalLM", model_type="llama", attention_bias=False, mlp_bias=False
        ),
        shapes=_plain_shapes,
        native=_llama_blocks,
        block=4,
    ),
}
"""By name; a family may have several."""
