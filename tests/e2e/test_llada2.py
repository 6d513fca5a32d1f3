"""LLaDA2 from end to end: compiled, decoded as its own sampler does, judged, and exported."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from qdc.cli import run
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, EMBEDDED, Case, write_family

LARGER = {
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "intermediate_size": 256,
    "head_dim": 32,
    "rotary_dim": 16,
    "num_experts": 32,
    "num_experts_per_tok": 4,
    "num_shared_experts": 1,
    "n_group": 8,
    "topk_group": 4,
    "moe_intermediate_size": 64,
    "max_position_embeddings": 256,
    "block_size": 32,
}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def call(*words: object) -> str:
        assert run(list(map(str, words))) == 0
        return capsys.readouterr().out

    return call


REFERENCE = ("--backend", "reference")
HELDOUT = EMBEDDED / "heldout.jsonl"


def check(case: Case, folder: Path, said: Callable[..., str], passes: str) -> None:
    model, out = write_family(folder / "model", case), folder / "out"
    report = compile_tiny(model, out, passes)
    assert report.predicted_bytes == report.tensor_bytes
    answer = json.loads(
        said("generate", out, "def read(path):", "--length", 16, *REFERENCE, "--json")
    )
    assert answer["strategy"] == "dynamic{threshold=0.95}"
    assert 0 < answer["steps"] <= 16
    judged = json.loads(
        said("eval", out, "--against", model, "--text", HELDOUT, "--windows", 2, "--length", 32,
             "--ratios", 0.5, "--seeds", 1, "--infills", 0, *REFERENCE, "--json")
    )  # fmt: skip
    for which in ("candidate", "original"):
        assert all(4 < row["loss"] < 12 for row in judged[which]["ratios"])
    assert "damaged" not in said("verify", out)
    report = json.loads(
        said("export", out, "-o", folder / "dense", "--dtype", "f32", "--verify", "--json")
    )
    assert report["tensors"] == len(case.shapes(case.config))


def test_from_end_to_end(tmp_path: Path, said: Callable[..., str]) -> None:
    check(CASES["llada2"], tmp_path, said, "rtn-lower{bits=4},pack")


@pytest.mark.slow
def test_a_larger_one(tmp_path: Path, said: Callable[..., str]) -> None:
    case = CASES["llada2"]
    check(replace(case, config={**case.config, **LARGER}), tmp_path, said, "default")
