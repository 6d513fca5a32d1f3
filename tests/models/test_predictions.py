"""Logits that are shifted by one: every metric and sampler reads the right row."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

import qdc
from qdc.cli import run
from qdc.evaluation.evaluate import held_out_windows
from qdc.evaluation.infill import infill, parse_gaps
from qdc.evaluation.masked_loss import masked_sums, ratio_mask
from qdc.models.predictions import logits_shift, predictions, sources
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.families import CASES, MASK, write_family

TEXT = "def read(path):\n    with open(path) as file:\n        return file.read()\n" * 4
LENGTH = 16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("shifted") / "dream"
    write_family(found, CASES["dream"], dtype=torch.float32)
    (found / "text.jsonl").write_text(json.dumps({"text": TEXT}) + "\n", encoding="utf-8")
    return found


def used(logits: Tensor) -> Tensor:
    """The definition, written out: the first row repeated, then rows 0 to T - 2."""
    return torch.cat((logits[:, :1], logits[:, :-1]), dim=1)


@torch.no_grad()
def native(folder: Path, tokens: Tensor) -> Tensor:
    """Used logits of the same weights in transformers' own class."""
    case = CASES["dream"]
    model = case.native_model(load_file(folder / "model.safetensors"))
    return used(case.native_logits(model, tokens))


def windows(folder: Path) -> Tensor:
    return held_out_windows([TEXT], encoder(load_tokenizer(folder)), LENGTH, 4)


def test_rows_that_are_read() -> None:
    logits = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0))
    wanted = ratio_mask(3, 7, 0.6, 0)
    wanted[0, 0] = True
    assert torch.equal(predictions(logits, wanted, 1), used(logits)[wanted])
    assert torch.equal(predictions(logits, wanted, 0), logits[wanted])
    assert sources(torch.arange(4), 1).tolist() == [0, 0, 1, 2]


def test_a_loaded_model_says_that_it_is_shifted(folder: Path) -> None:
    assert logits_shift(qdc.load_original(folder)) == 1
    assert logits_shift(lambda tokens: tokens) == 0


def test_metric_by_hand(folder: Path) -> None:
    clean = windows(folder)
    hidden = ratio_mask(len(clean), LENGTH, 0.5, 0)
    hidden[0, 0] = True
    model = qdc.load_original(folder)
    found = masked_sums((model,), clean, hidden, MASK, 3, lambda: None).losses[0]
    logits = native(folder, clean.masked_fill(hidden, MASK))
    each = functional.cross_entropy(logits.transpose(1, 2), clean, reduction="none")
    due = (each * hidden).sum(1)
    torch.testing.assert_close(found.float(), due, atol=1e-3, rtol=0)
    assert float((found - _unshifted(folder, clean, hidden)).abs().min()) > 0.1


def _unshifted(folder: Path, clean: Tensor, hidden: Tensor) -> Tensor:
    model = qdc.load_original(folder)
    plain = lambda tokens: model(tokens)  # noqa: E731
    return masked_sums((plain,), clean, hidden, MASK, 3, lambda: None).losses[0]


def test_eval_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clean = windows(folder)
    options = f"--length {LENGTH} --windows 4 --ratios 0.5 --seeds 1 --json".split()
    assert run(["eval", str(folder), "--text", str(folder / "text.jsonl"), *options]) == 0
    (row,) = json.loads(capsys.readouterr().out)["ratios"]
    hidden = ratio_mask(len(clean), LENGTH, 0.5, 0)
    logits = native(folder, clean.masked_fill(hidden, MASK))
    assert row["loss"] == pytest.approx(
        float(functional.cross_entropy(logits[hidden], clean[hidden])), abs=1e-4
    )


def test_run_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Greedy, the surest place first, with the logits of the native class."""
    text = "<mask>def f(<mask>):<mask><mask> x"
    assert run(["run", str(folder), text, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    tokenizer = load_tokenizer(folder)
    tokens, gaps = parse_gaps(text, encoder(tokenizer), MASK)
    filled = infill(qdc.load_original(folder), tokens, gaps, MASK)
    left = gaps.clone()
    while bool(left.any()):
        chances = native(folder, tokens)[0].double().index_fill(1, torch.tensor(MASK), -torch.inf)
        sure, best = chances.softmax(1).max(1)
        place = int(sure.masked_fill(~left[0], -1).argmax())
        tokens[0, place], left[0, place] = best[place], False
    assert found["text"] == tokenizer.decode(tokens[0].tolist(), skip_special_tokens=False)
    assert torch.equal(filled, tokens)


def test_run_fills_a_block_causal_model_block_by_block(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_family(tmp_path / "sdar", CASES["sdar"], dtype=torch.float32)
    text = "<mask><mask><mask>def f(<mask><mask>):<mask><mask><mask> x"
    assert run(["run", str(folder), text, "--gap", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["filled"]
    tokenizer, model = load_tokenizer(folder), qdc.load_original(folder)
    tokens, gaps = parse_gaps(text, encoder(tokenizer), MASK, 2)

    def filled(block: int | None) -> list[str]:
        places = infill(model, tokens, gaps, MASK, block=block)[gaps].tolist()
        return [str(tokenizer.decode([place])) for place in places]

    assert found == filled(4)
    assert found != filled(None)
