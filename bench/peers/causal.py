"""A causal Llama checkpoint as transformers itself opens it, beside our own copy of it.

Libraries take it as they take any Llama: their masks and positions are what is compared. Our copy
of a block runs on a mask and positions that are made here, whatever the library made of its own.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from qdc.checkpoint.folder import read_json
from qdc.frontend.native import NativeModel, looks_back

from .native import LEAVES
from .pair import Pair


def is_llama(folder: Path, original: NativeModel) -> bool:
    """Whether it is a Llama that looks back alone: one with a mask token looks both ways."""
    return isinstance(original.body, LlamaForCausalLM) and looks_back(
        read_json(folder / "config.json"), folder
    )


def pair(folder: Path, original: NativeModel) -> Pair:
    """Our module and a fresh one, f32, and what a block of ours makes of an input."""
    native: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    native.train(False)
    native.config.use_cache = False
    inside = original.body.model

    def embed(tokens: Tensor) -> Tensor:
        found: Tensor = inside.embed_tokens(tokens)
        return found

    def block(index: int, read: Tensor) -> Tensor:
        length = read.shape[1]
        places = torch.arange(length)[None]
        hidden = torch.full((length, length), -torch.inf).triu(1)[None, None]
        found = inside.layers[index](
            read,
            attention_mask=hidden,
            position_ids=places,
            position_embeddings=inside.rotary_emb(read, places),
        )
        output: Tensor = found[0] if isinstance(found, tuple) else found
        return output

    return Pair(original, native, names(len(inside.layers)), embed, block, causal=True)


def names(layers: int) -> dict[str, str]:
    """Every linear of the blocks; transformers' names are ours."""
    paths = [f"model.layers.{index}.{leaf}" for index in range(layers) for leaf in LEAVES]
    return {path: path for path in paths}
