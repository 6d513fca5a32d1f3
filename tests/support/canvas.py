"""Tiny random checkpoints of DiffusionGemma, as transformers saves them, and that class again."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion

from tests.support.checkpoints import EMBEDDED, TOKENIZER, VOCABULARY
from tests.support.published import config_of

CANVAS = 8


def canvas_config(**fields: Any) -> dict[str, Any]:
    """``config.json`` of a tiny model; fields are those of ``text_config``."""
    published = config_of("diffusion-gemma")
    text = {**published["text_config"], "vocab_size": VOCABULARY, "max_position_embeddings": 64}
    return {**published, "text_config": {**text, **fields}, "canvas_length": CANVAS}


def write_canvas(folder: Path, *, seed: int = 0, **fields: Any) -> Path:
    """Write a random checkpoint with the embedded tokenizer; fields are those of the text."""
    config = canvas_config(**fields)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = DiffusionGemmaForBlockDiffusion(DiffusionGemmaConfig(**config))
        for name, tensor in model.state_dict().items():
            if tensor.ndim > 1:
                torch.nn.init.normal_(tensor, std=2 / tensor.shape[-1] ** 0.5)
            elif "vision" not in name:
                tensor.mul_(0.8 + 0.4 * torch.rand(tensor.shape))
        model.bfloat16().save_pretrained(folder)
    saved = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**saved, **config}), encoding="utf-8")
    for name in TOKENIZER:
        shutil.copyfile(EMBEDDED / name, folder / name)
    return folder


def in_transformers(folder: Path) -> DiffusionGemmaForBlockDiffusion:
    """The checkpoint in transformers' own hands, in float32."""
    model = DiffusionGemmaForBlockDiffusion.from_pretrained(folder, dtype=torch.float32)
    model.train(mode=False)
    return model


def native_logits(
    model: DiffusionGemmaForBlockDiffusion,
    tokens: Tensor,
    mask: Tensor | None = None,
    before: Tensor | None = None,
) -> Tensor:
    """Logits of the canvas, the last tokens of ``i64[batch, T]``: ``[batch, CANVAS, rows]``."""
    with torch.no_grad():
        found: Tensor = model(
            input_ids=tokens[:, :-CANVAS],
            decoder_input_ids=tokens[:, -CANVAS:],
            attention_mask=None if mask is None else mask[:, :-CANVAS],
            decoder_attention_mask=mask,
            self_conditioning_logits=before,
        ).logits
    return found
