"""Tiny random checkpoints in the LLaDA layout, with the tokenizer of the embedded model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

EMBEDDED = Path(__file__).parents[2] / "examples" / "tiny-llada"
VOCABULARY, MASK, END = 2048, 1, 0
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_checkpoint(
    folder: Path,
    *,
    d_model: int = 160,
    mlp_hidden_size: int = 320,
    n_layers: int = 2,
    n_heads: int = 2,
    n_kv_heads: int | None = None,
    vocab: int = VOCABULARY,
    max_length: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    edit: Callable[[dict[str, Tensor]], None] | None = None,
    edit_config: Callable[[dict[str, Any]], None] | None = None,
    shards: int = 1,
) -> Path:
    """Write a random checkpoint and return its folder.

    The default widths 160 and 320 leave a last block of 32 and 64 columns. ``edit`` and
    ``edit_config`` may break the tensors and the configuration before they are written; with more
    than one shard the tensors are dealt round-robin and an index is written.
    """
    config: dict[str, Any] = {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_heads if n_kv_heads is None else n_kv_heads,
        "mlp_hidden_size": mlp_hidden_size,
        "vocab_size": vocab,
        "embedding_size": vocab,
        "max_sequence_length": max_length,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "mask_token_id": MASK,
        "eos_token_id": END,
        "pad_token_id": END,
        "block_type": "llama",
        "activation_type": "silu",
        "layer_norm_type": "rms",
        "include_bias": False,
        "weight_tying": False,
    }
    shapes = published_shapes(config)
    if edit_config is not None:
        edit_config(config)
    return write_model(folder, config, shapes, seed=seed, dtype=dtype, edit=edit, shards=shards)


def write_model(
    folder: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.bfloat16,
    edit: Callable[[dict[str, Tensor]], None] | None = None,
    shards: int = 1,
) -> Path:
    """Write a configuration, random tensors of these shapes, and the embedded tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    tensors = {n: _random(n, shape, generator).to(dtype) for n, shape in shapes.items()}
    if edit is not None:
        edit(tensors)
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for name in TOKENIZER:
        shutil.copyfile(EMBEDDED / name, folder / name)
    _write(folder, tensors, shards)
    return folder


def published_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Every tensor of a LLaDA checkpoint under its published name, in execution order."""
    width, hidden, vocab = config["d_model"], config["mlp_hidden_size"], config["vocab_size"]
    keys = width // config["n_heads"] * config["n_kv_heads"]
    block = {
        "attn_norm": (width,),
        "q_proj": (width, width),
        "k_proj": (keys, width),
        "v_proj": (keys, width),
        "attn_out": (width, width),
        "ff_norm": (width,),
        "ff_proj": (hidden, width),
        "up_proj": (hidden, width),
        "ff_out": (width, hidden),
    }
    shapes: dict[str, tuple[int, ...]] = {"model.transformer.wte.weight": (vocab, width)}
    for index in range(config["n_layers"]):
        for leaf, shape in block.items():
            shapes[f"model.transformer.blocks.{index}.{leaf}.weight"] = shape
    shapes["model.transformer.ln_f.weight"] = (width,)
    shapes["model.transformer.ff_out.weight"] = (vocab, width)
    return shapes


def _random(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return 0.3 * noise
    return 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5


def _write(folder: Path, tensors: dict[str, Tensor], shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = list(tensors)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
