"""Small artifacts of every kind, and what qdc and transformers make of them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import qdc
from tests.support.natives import HEADS, write_native

PACKED = "quantize-vocab,rtn-lower{bits=4},pack"
"""Embedding and head too; reads no text."""
BINARY = "stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower{sweeps=2 scale-bits=8}),pack"
"""Multi-binary layers with coded scales, embedding and head as they are."""


def native_artifact(folder: Path, kind: str, passes: str = PACKED, **options: Any) -> Path:
    """Compile a tiny model of transformers; the checkpoint stays beside it as ``model``."""
    model = write_native(folder / "model", kind, **options)
    given: dict[str, Any] = {"samples": 4, "length": 16} if "calibrate" in passes else {}
    qdc.compile(model, passes, out=folder / "out", write_report=False, **given)
    return folder / "out"


def auto_class(kind: str) -> Any:
    """The auto class of what ``write_native`` writes."""
    return HEADS.get(kind, AutoModelForCausalLM)


def batch(high: int = 2048) -> dict[str, Tensor]:
    """Two rows of tokens, the second one padded."""
    ids = torch.randint(2, high, (2, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """Of the batch, by a model of qdc or of transformers."""
    found = model(**batch())
    return found if isinstance(found, Tensor) else found.logits
