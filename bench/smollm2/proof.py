"""The checkpoint against llama.cpp reading the very file: token ids, logits and next-token loss.

Needs the package ``xllamacpp``, whose functions ``examples/llamacpp.py`` calls.
"""

import ctypes
import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM

from bench.common.processes import ROOT

LENGTH = 512


class Proof(NamedTuple):
    """What was compared."""

    lines: int
    equal: int
    """Lines of text with the same token ids."""
    tokens: int
    apart: float
    """Distance of the logits, relative to their spread."""
    agreed: float
    """Share of places with the same most probable token."""
    loss: float
    """Next-token loss of the checkpoint, nats, on the compared windows."""
    engine_loss: float


def prove(
    folder: Path, file: Path, lines: Sequence[str], windows: int, length: int = LENGTH
) -> Proof:
    """Compare the checkpoint in ``folder`` with the GGUF ``file`` in llama.cpp.

    Its arithmetic rounds inputs of a layer to 8 bits, so logits are near and not equal.

    Args:
        folder: the checkpoint.
        file: what it was made of.
        lines: texts whose token ids are compared; then joined and cut into windows.
        windows: how many windows have their logits compared.
        length: tokens of a window.
    """
    engine = _engine(file, length)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = [tokenizer.encode(line, add_special_tokens=False).ids for line in lines]
    equal = sum(mine == engine.encode(line) for mine, line in zip(ids, lines, strict=True))
    joined = tokenizer.encode("\n".join(lines), add_special_tokens=False).ids
    cut = torch.tensor(joined[: windows * length]).view(-1, length)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.train(mode=False)
    off = spread = agreed = loss = engine_loss = 0.0
    for window in cut:
        with torch.no_grad():
            mine = model(window[None]).logits[0]
        due = torch.from_numpy(engine(window.tolist()))
        off += float((mine - due).square().sum())
        spread += float((due - due.mean(-1, keepdim=True)).square().sum())
        agreed += float((mine.argmax(-1) == due.argmax(-1)).sum())
        loss += float(functional.cross_entropy(mine[:-1], window[1:]))
        engine_loss += float(functional.cross_entropy(due[:-1], window[1:]))
    count = len(cut)
    return Proof(
        len(lines), equal, cut.numel(), (off / spread) ** 0.5, agreed / cut.numel(),
        loss / count, engine_loss / count,
    )  # fmt: skip


def lines_of(text: Path, count: int) -> list[str]:
    """Lines of a ``.jsonl`` of documents, spread evenly over them."""
    documents = [json.loads(line)["text"] for line in text.read_text("utf-8").splitlines()]
    lines = [line for document in documents for line in document.splitlines() if line.strip()]
    return lines[:: max(1, len(lines) // count)][:count]


def _engine(file: Path, length: int) -> Any:
    spec = importlib.util.spec_from_file_location("llamacpp", ROOT / "examples" / "llamacpp.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    engine = module.Engine(file, length)
    engine.calls.llama_set_causal_attn(engine.context, ctypes.c_bool(True))
    # Its threads wait by spinning, which takes forever where others want the cores too.
    engine.calls.llama_set_n_threads(engine.context, 1, 1)
    return engine
