"""Random checkpoints in the layout of LLaDA, of any size: what counts is what they cost."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from .processes import EMBEDDED

HEAD_WIDTH = 128


def configuration(
    *, regions: int, width: int, hidden: int, vocabulary: int, heads: int | None = None
) -> dict[str, Any]:
    """``config.json`` of a LLaDA; heads are 128 wide if their number is not given."""
    return {
        "architectures": ["LLaDAModelLM"],
        "model_type": "llada",
        "d_model": width,
        "n_layers": regions,
        "n_heads": heads or max(1, width // HEAD_WIDTH),
        "mlp_hidden_size": hidden,
        "vocab_size": vocabulary,
        "embedding_size": vocabulary,
        "max_sequence_length": 4096,
        "rope_theta": 500000.0,
        "mask_token_id": 1,
        "eos_token_id": 0,
        "pad_token_id": 0,
    }


def build(
    folder: Path,
    *,
    regions: int,
    width: int,
    hidden: int,
    vocabulary: int,
    dtype: torch.dtype = torch.bfloat16,
) -> Path:
    """Write a random checkpoint with the embedded tokenizer, and return its folder.

    Each region is a shard and the rest another one, so that no more than a shard is ever in memory.
    """
    folder.mkdir(parents=True)
    config = configuration(regions=regions, width=width, hidden=hidden, vocabulary=vocabulary)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(EMBEDDED / name, folder / name)
    shapes: dict[str, tuple[int, ...]] = {"attn_norm": (width,), "ff_norm": (width,)}
    shapes |= dict.fromkeys(("q_proj", "k_proj", "v_proj", "attn_out"), (width, width))
    shapes |= dict.fromkeys(("ff_proj", "up_proj"), (hidden, width)) | {"ff_out": (width, hidden)}
    matrix = (vocabulary, width)
    parts = [{f"blocks.{n}.{leaf}": s for leaf, s in shapes.items()} for n in range(regions)]
    parts.append({"wte": matrix, "ln_f": (width,), "ff_out": matrix})
    generator = torch.Generator().manual_seed(0)
    weight_map: dict[str, str] = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-{len(parts):05}.safetensors"
        tensors = {
            f"model.transformer.{leaf}.weight": _random(shape, generator).to(dtype)
            for leaf, shape in part.items()
        }
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder


def _random(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Gains near 1, and matrices whose outputs are as large as their inputs."""
    noise = torch.randn(shape, generator=generator)
    return 1 + 0.1 * noise if len(shape) == 1 else noise / shape[-1] ** 0.5
