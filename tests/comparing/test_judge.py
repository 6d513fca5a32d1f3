"""What is measured of a model in the worker's process: causal models, experts, the kept losses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import qdc
from qdc.comparing.judge import judge
from qdc.comparing.work import Calibrating, Judging, Work
from qdc.evaluation.held_out import held_out as cut
from qdc.evaluation.next_token import compare_next
from qdc.frontend.encoding import open_encoder
from qdc.text.source import read_text
from tests.e2e.test_causal import write_causal
from tests.support.experts import write_mixture


def work_on(model: Path, text: Path, out: Path) -> Work:
    return Work(
        digest="d", name="n", what="w", model=model, pipeline="", overrides={}, seed=None,
        calibration=Calibrating(), document_tokens="auto", original=out / "original.json",
        judging=Judging(text=text, windows=8, length=16, masks=1), scratch=out, keep=None,
        device="cpu", plugins=(), extra={},
    )  # fmt: skip


def halved(model: Path) -> nn.Module:
    """The model with the last matrix of each kind at half its size."""
    module = qdc.load_original(model)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("o_proj.weight"):
                parameter.mul_(0.5)
    return module


def quiet(what: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def test_a_model_without_mask_token_has_next_token_losses(held_out: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    write_causal(model, "llama")
    candidate = halved(model)
    found = judge(work_on(model, held_out, tmp_path), candidate, quiet)
    [mine], [due] = found["candidate"], found["original"]
    windows, owners = windows_of(model, held_out)
    expected = compare_next(candidate, qdc.load_original(model), windows, owners=owners)
    tokens = sum(mine.tokens)
    assert mine.ratio is None
    assert (sum(mine.losses) - sum(due.losses)) / tokens == pytest.approx(expected.rise, abs=1e-6)
    assert sum(mine.agreed) / tokens == pytest.approx(expected.top1)
    assert sum(mine.divergences) / tokens == pytest.approx(expected.divergence, abs=1e-6)
    wrong = {name for name, error in found["drift"].layers.items() if error > 0}
    assert wrong == {f"model.layers.{depth}.self_attn.o_proj" for depth in range(2)}
    assert found["drift"].unseen == ()


def windows_of(model: Path, text: Path) -> Any:
    encode = open_encoder(model)
    return cut(read_text(text).documents, encode, 16, 8)[:2]


def test_experts_that_no_token_comes_to_have_no_error(held_out: Path, tmp_path: Path) -> None:
    model = write_mixture(tmp_path / "model", count=1, idle=True)
    found = judge(work_on(model, held_out, tmp_path), qdc.load_original(model), quiet)
    drift = found["drift"]
    assert drift.unseen
    assert {name for name in drift.unseen if ".3." in name} == {
        name for name in (*drift.unseen, *drift.layers) if ".experts.3." in name
    }
    assert not set(drift.unseen) & set(drift.layers)
    assert set(drift.layers.values()) == {0.0}


def test_losses_of_the_original_are_computed_once(
    model: Path, held_out: Path, tmp_path: Path
) -> None:
    work, module, steps = work_on(model, held_out, tmp_path), qdc.load_original(model), list[str]()
    first = judge(work, module, lambda what, done, total: steps.append(what))
    again = judge(work, module, lambda what, done, total: steps.append(what))
    assert first["original"] == tuple(again["original"])
    assert steps.count("original") == 3, "one forward a ratio, in the first of the two"
    work.original.write_text("{", encoding="utf-8")
    assert judge(work, module, quiet)["candidate"] == first["candidate"]
    kept = [part.losses for part in first["original"]]
    assert [part.losses for part in first["candidate"]] == kept, "it is the same model"
