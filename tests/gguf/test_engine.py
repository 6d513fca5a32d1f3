"""llama.cpp itself on the files that we write: logits, tokens, and a whole denoising loop."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qdc
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.ggufs import apart, engine, example, needs_engine, needs_gguf, write_plain

pytestmark = [needs_gguf, needs_engine]
ROUNDED = 3e-3
"""What fp16 weights and attention may change in logits, relative to their spread."""
EIGHT_BITS = 0.04
"""The same of inputs that are rounded to 8 bits."""
LINES = 1000


@pytest.fixture(scope="module")
def ids() -> list[int]:
    """Held-out text, half of it masked."""
    entries = (EMBEDDED / "heldout.jsonl").read_text().splitlines()[:8]
    text = " ".join(str(value) for entry in entries for value in json.loads(entry).values())
    found = np.array(encoder(load_tokenizer(EMBEDDED), "none")(text)[:96])
    found[np.random.default_rng(0).random(len(found)) < 0.5] = 1
    return [int(each) for each in found]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model in blocks of Q2_K and Q3_K, without feedback to be quick."""
    out = tmp_path_factory.mktemp("engine") / "out"
    passes = "gguf-vocab,stages(calibrate-mcs,sensitivity,gguf-lower{feedback=false}),pack"
    compile_tiny(EMBEDDED, out, passes)
    qdc.export(out, out=out.with_suffix(".gguf"), format="gguf")
    return out


def reference(model: nn.Module, ids: list[int]) -> np.ndarray[Any, Any]:
    logits: np.ndarray[Any, Any] = model(torch.tensor([ids]))[0].numpy()
    return logits


@torch.no_grad()
def test_logits_are_the_reference_s(artifact: Path, ids: list[int], tmp_path: Path) -> None:
    """The floor is the engine's own file of the same weights in fp16.

    With blocks its inputs are rounded to 8 bits for 256 columns; the reference is rounded in the
    same places to know what that may change.
    """
    qdc.export(artifact, out=tmp_path / "dense", dtype="f32")
    write_plain(tmp_path / "dense", tmp_path / "f16.gguf")
    model = qdc.load(artifact, backend="reference")
    exact = reference(model, ids)
    plain = engine(tmp_path / "f16.gguf")(ids)
    assert apart(plain, exact) < ROUNDED
    assert (plain.argmax(-1) == exact.argmax(-1)).all()
    blocks = engine(artifact.with_suffix(".gguf"))(ids)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0]),))
    allowed = apart(reference(model, ids), exact)
    assert ROUNDED < allowed < 0.05
    assert apart(blocks, exact) < 1.6 * allowed


def rounded(inputs: Tensor) -> Tensor:
    """As the engine reads inputs of k-quants: 8 bits, one scale for 256 columns."""
    parts = torch.unflatten(inputs, -1, (-1, 256))
    place = parts.abs().argmax(-1, keepdim=True)
    largest = parts.gather(-1, place)
    scale = -127 / torch.where(largest == 0, 1.0, largest)
    found: Tensor = ((parts * scale).round() / scale).flatten(-2)
    return found


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "model"
    return write_checkpoint(folder, d_model=256, mlp_hidden_size=256, n_layers=1)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["Q2_K_S", "Q3_K", "TQ2_0", "Q2_0", "Q1_0"])
def test_the_engine_computes_with_every_type(kind: str, small: Path, tmp_path: Path) -> None:
    """Also with code 3 of TQ2_0 and Q2_0, which its own quantizers never write."""
    lower = f"gguf-lower{{type={kind} feedback=false}}"
    passes = f"gguf-vocab{{head=Q8_0}},stages(calibrate-mcs,sensitivity,{lower}),pack"
    compile_tiny(small, tmp_path / "out", passes)
    qdc.export(tmp_path / "out", out=tmp_path / "a.gguf", format="gguf")
    ids = [int(each) for each in np.random.default_rng(0).integers(2, 2000, 48)]
    expected = reference(qdc.load(tmp_path / "out", backend="reference"), ids)
    assert apart(engine(tmp_path / "a.gguf", 64)(ids), expected) < EIGHT_BITS


@pytest.mark.parametrize("family", ["llada", "dream", "llada-moe"])
def test_every_family_computes_the_same(family: str, tmp_path: Path) -> None:
    case = next(case for case in CASES.values() if case.family == family)
    write_family(tmp_path / "model", case)
    write_plain(tmp_path / "model", tmp_path / "model.gguf")
    ids = [int(each) for each in np.random.default_rng(0).integers(2, 2000, 24)]
    with torch.no_grad():
        expected = reference(qdc.load_original(tmp_path / "model"), ids)
    assert apart(engine(tmp_path / "model.gguf", 64)(ids), expected) < ROUNDED


def test_a_thousand_lines_have_the_same_tokens(artifact: Path) -> None:
    entries = (json.loads(each) for each in (EMBEDDED / "heldout.jsonl").read_text().splitlines())
    lines = [line for entry in entries for line in "\n".join(map(str, entry.values())).split("\n")]
    special = ["a <|mdm_mask|> b", " ", "don't  \t\n\n x", "naïve 漢字 🙂 ½", "12345 1.5e-3"]
    wanted = [*special, *(line for line in lines if line)][:LINES]
    assert len(wanted) == LINES
    ours, theirs = encoder(load_tokenizer(EMBEDDED), "none"), engine(artifact.with_suffix(".gguf"))
    differing = [line for line in wanted if ours(line) != theirs.encode(line)]
    assert differing == []


def test_a_denoising_loop_fills_every_mask(artifact: Path) -> None:
    loaded = engine(artifact.with_suffix(".gguf"))
    prompt = loaded.encode("def add(a, b):\n    return")
    found = example("llamacpp_generate").generate(loaded, prompt, 16, 8)
    assert len(found) == 16
    assert loaded.mask == 1
    assert loaded.mask not in found
    text = loaded.decode(found)
    assert sum(letter.isprintable() or letter.isspace() for letter in text) > 0.9 * len(text)
