"""Write the folder of LLaDA2.0-mini or -flash without its weights, for ``qdc plan``.

    python examples/llada2_headers.py mini out/llada2-mini
    qdc plan out/llada2-mini --gpu h100 --ranks 8

What ``config.json`` of the published models says, by the copies that their authors keep beside
their training code, and the names of their tensors: one dense block, then blocks of 256 experts and
a shared one. In which shard a tensor lies is made up, and the total counts every tensor in bf16.
"""

import argparse
import json
from pathlib import Path
from typing import Any

BF16, SHARD = 2, 4 << 30
SIZES = {
    "mini": {
        "num_hidden_layers": 20,
        "hidden_size": 2048,
        "intermediate_size": 5120,
        "moe_intermediate_size": 512,
        "num_attention_heads": 16,
    },
    "flash": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "intermediate_size": 9216,
        "moe_intermediate_size": 1024,
        "num_attention_heads": 32,
    },
}
SHARED: dict[str, Any] = {
    "architectures": ["LLaDA2MoeModelLM"],
    "model_type": "llada2_moe",
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "first_k_dense_replace": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 16384,
    "max_window_layers": 28,
    "moe_router_enable_expert_bias": True,
    "n_group": 8,
    "norm_head": False,
    "norm_softmax": False,
    "norm_topk_prob": True,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "num_shared_experts": 1,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": 156892,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 600000,
    "rotary_dim": 64,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "use_cache": False,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
    "use_sliding_window": False,
    "using_split_qkv_in_self_attention": False,
    "vocab_size": 157184,
}
Shapes = dict[str, tuple[int, ...]]


def shapes(config: dict[str, Any]) -> Shapes:
    """Every tensor under its published name."""
    matrix = (config["vocab_size"], config["hidden_size"])
    found: Shapes = {"model.word_embeddings.weight": matrix}
    for layer in range(config["num_hidden_layers"]):
        found |= block(config, layer)
    found["model.norm.weight"] = matrix[1:]
    found["lm_head.weight"] = matrix
    return found


def block(config: dict[str, Any], layer: int) -> Shapes:
    """The tensors of one block: heads are fused, experts are not."""
    path, width, head = f"model.layers.{layer}", config["hidden_size"], config["head_dim"]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    found: Shapes = {
        f"{path}.attention.dense.weight": (width, heads * head),
        f"{path}.attention.key_layernorm.weight": (head,),
        f"{path}.attention.query_key_value.weight": ((heads + 2 * groups) * head, width),
        f"{path}.attention.query_layernorm.weight": (head,),
        f"{path}.input_layernorm.weight": (width,),
        f"{path}.post_attention_layernorm.weight": (width,),
    }
    mlp, hidden = f"{path}.mlp", config["moe_intermediate_size"]
    if layer < config["first_k_dense_replace"]:
        return found | gated(mlp, width, config["intermediate_size"])
    found[f"{mlp}.gate.weight"] = (config["num_experts"], width)
    found[f"{mlp}.gate.expert_bias"] = (config["num_experts"],)
    for expert in range(config["num_experts"]):
        found |= gated(f"{mlp}.experts.{expert}", width, hidden)
    return found | gated(f"{mlp}.shared_experts", width, config["num_shared_experts"] * hidden)


def gated(path: str, width: int, hidden: int) -> Shapes:
    """A gated feed-forward."""
    return {
        f"{path}.gate_proj.weight": (hidden, width),
        f"{path}.up_proj.weight": (hidden, width),
        f"{path}.down_proj.weight": (width, hidden),
    }


def write(size: str, folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**SHARED, **SIZES[size]}
    total, begins = 0, dict[str, int]()
    for name, shape in shapes(config).items():
        begins[name] = total
        rows, columns = (*shape, 1)[:2]
        total += rows * columns * BF16
    count = -(-total // SHARD)
    names = {
        name: f"model-{begin // SHARD + 1:05}-of-{count:05}.safetensors"
        for name, begin in begins.items()
    }
    index = {"metadata": {"total_size": total}, "weight_map": names}
    files = {"config.json": config, "model.safetensors.index.json": index}
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write config.json and index of LLaDA2.0.")
    parser.add_argument("size", choices=SIZES)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    write(options.size, options.folder)
