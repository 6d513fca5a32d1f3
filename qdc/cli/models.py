"""What ``run`` and ``eval`` share: open an artifact or a checkpoint with its tokenizer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qdc.calibration.tokenizer import encoder, load_tokenizer
from qdc.frontend.checkpoint import read_json
from qdc.ir.graph import ModelFacts
from qdc.models.families import build
from qdc.registry import standard_registry
from qdc.runtime.load import load_artifact, load_checkpoint


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run."""

    module: nn.Module
    facts: ModelFacts
    encode: Callable[[str], list[int]]
    decode: Callable[[list[int]], str]
    compiled: bool


def open_runnable(folder: Path, device: str, plugins: Sequence[Path]) -> Opened:
    """Load either kind of folder. Raises ``QdcError`` saying what is wrong with it."""
    from qdc.compiler import check_device

    check_device(device)
    config = read_json(folder / "config.json")
    compiled = "quantization_config" in config
    if compiled:
        module = load_artifact(folder, standard_registry(plugins), device, torch.float32)
    else:
        module = load_checkpoint(folder, device, torch.float32)
    _, facts = build({k: v for k, v in config.items() if k != "quantization_config"})
    tokenizer = load_tokenizer(folder)

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return Opened(module, facts, encoder(tokenizer), decode, compiled)
