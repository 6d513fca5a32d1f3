"""Tiny random checkpoints of classes that transformers implements, as it saves them itself."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    LlamaConfig,
    ModernBertConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3MoeConfig,
)

from tests.support.checkpoints import EMBEDDED, MASK, TOKENIZER, VOCABULARY

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "mask_token_id": MASK,
}
CONFIGURATIONS: dict[str, Callable[[], PretrainedConfig]] = {
    "bert": lambda: BertConfig(**SIZES),
    "modernbert": lambda: ModernBertConfig(
        **SIZES, local_attention=8, cls_token_id=0, sep_token_id=0
    ),
    "llama": lambda: LlamaConfig(**SIZES, num_key_value_heads=1),
    "qwen2": lambda: Qwen2Config(**SIZES, num_key_value_heads=1, tie_word_embeddings=True),
    "qwen3-moe": lambda: Qwen3MoeConfig(
        **{**SIZES, "num_hidden_layers": 1},
        num_key_value_heads=1,
        moe_intermediate_size=16,
        num_experts=3,
        num_experts_per_tok=2,
        norm_topk_prob=True,
    ),
}
HEADS: dict[str, Any] = {"bert": AutoModelForMaskedLM, "modernbert": AutoModelForMaskedLM}
Tensors = dict[str, Tensor]


def write_native(folder: Path, kind: str, *, head: bool = True) -> Path:
    """Write a random checkpoint of this kind with a tokenizer, with or without its head."""
    auto = HEADS.get(kind, AutoModelForCausalLM) if head else AutoModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = auto.from_config(CONFIGURATIONS[kind]())
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copyfile(EMBEDDED / name, folder / name)
    return folder


def rewrite(
    source: Path,
    folder: Path,
    edit: Callable[[Tensors], Tensors] = lambda tensors: tensors,
    **fields: Any,
) -> Path:
    """Copy a checkpoint with other tensors and other fields of ``config.json``; None removes."""
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | fields
    kept = {name: value for name, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept), encoding="utf-8")
    weights = folder / "model.safetensors"
    save_file(edit(load_file(weights)), weights, metadata={"format": "pt"})
    return folder


def bidirectional(folder: Path, kind: str, *, head: bool = True) -> PreTrainedModel:
    """The checkpoint in transformers' own hands: what every result is compared with."""
    auto = HEADS.get(kind, AutoModelForCausalLM) if head else AutoModel
    config = type(CONFIGURATIONS[kind]()).from_pretrained(folder)
    config.is_causal = False
    model: PreTrainedModel = auto.from_pretrained(folder, config=config, dtype=torch.float32)
    model.train(mode=False)
    return model
