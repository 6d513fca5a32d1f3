"""Write the folder of LLaDA-8B without its weights: configuration and index, for ``qdc plan``.

    python examples/llada8b_headers.py out/llada-8b
    qdc plan out/llada-8b

What ``config.json`` and ``model.safetensors.index.json`` of the published model say: 291 tensors
in bf16, 8,015,581,184 weights, 16,031,162,368 bytes. In which shard a tensor lies is made up.
"""

import argparse
import json
from pathlib import Path
from typing import Any

LAYERS, SHARDS, BF16 = 32, 6, 2
CONFIG: dict[str, Any] = {
    "architectures": ["LLaDAModelLM"],
    "model_type": "llada",
    "activation_type": "silu",
    "alibi": False,
    "attention_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 4096,
    "embedding_size": 126464,
    "eos_token_id": 126081,
    "include_bias": False,
    "include_qkv_bias": False,
    "init_device": "meta",
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "mask_token_id": 126336,
    "max_sequence_length": 4096,
    "mlp_hidden_size": 12288,
    "n_heads": 32,
    "n_kv_heads": 32,
    "n_layers": LAYERS,
    "pad_token_id": 126081,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_full_precision": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "vocab_size": 126464,
    "weight_tying": False,
}
MATRIX, UP, DOWN, VOCABULARY = (4096, 4096), (12288, 4096), (4096, 12288), (126464, 4096)
BLOCK = {
    "attn_norm": (4096,),
    "q_proj": MATRIX,
    "k_proj": MATRIX,
    "v_proj": MATRIX,
    "attn_out": MATRIX,
    "ff_norm": (4096,),
    "ff_proj": UP,
    "up_proj": UP,
    "ff_out": DOWN,
}


def shapes() -> dict[str, tuple[int, ...]]:
    """Every tensor under its published name."""
    found: dict[str, tuple[int, ...]] = {"model.transformer.wte.weight": VOCABULARY}
    for layer in range(LAYERS):
        for leaf, shape in BLOCK.items():
            found[f"model.transformer.blocks.{layer}.{leaf}.weight"] = shape
    found["model.transformer.ln_f.weight"] = (4096,)
    found["model.transformer.ff_out.weight"] = VOCABULARY
    return found


def write(folder: Path) -> None:
    """Write both files."""
    folder.mkdir(parents=True, exist_ok=True)
    total = 0
    weight_map = {}
    for place, (name, shape) in enumerate(shapes().items()):
        rows, columns = (*shape, 1)[:2]
        total += rows * columns * BF16
        shard = place * SHARDS // len(shapes())
        weight_map[name] = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    files = {"config.json": CONFIG, "model.safetensors.index.json": index}
    for name, data in files.items():
        (folder / name).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write LLaDA-8B's config.json and index.")
    parser.add_argument("folder", type=Path)
    write(parser.parse_args().folder)
