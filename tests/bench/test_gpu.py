"""The GPU benchmark: all of its code at toy sizes, and no number that was not measured."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tests.support.interpreter  # noqa: F401
from bench.common.markdown import END, MARK
from bench.common.shapes import Shape
from bench.gpu import linears
from bench.gpu.__main__ import PART, _insert, main
from bench.gpu.card import Card
from bench.gpu.clock import Clock, OutOfTime
from bench.gpu.page import page
from bench.gpu.peers import Linear
from bench.gpu.result import DRY as NOT_MEASURED
from bench.gpu.result import Result, targets
from bench.gpu.sizes import DRY, FULL
from bench.gpu.step import Models
from bench.gpu.weights import codec_of

CPU = torch.device("cpu")


def card(*, measured: bool) -> Card:
    return Card(
        name="a card", driver="1", capability="9.0", memory_bytes=1, cache_bytes=1, python="3",
        versions={}, measured=measured, copy_bytes_per_second=1e12, bf16_flops=1e15,
    )  # fmt: skip


def row(tokens: int, bf16: float, qdc: float, deviation: float = 0.5) -> linears.Row:
    return linears.Row(
        model="m", layer="l", rows=4, columns=8, tokens=tokens, seconds={"bf16": bf16, "qdc": qdc},
        how={"bf16": "graph", "qdc": "graph"}, bytes_read={"bf16": 64, "qdc": 8},
        floor_seconds=qdc / 2, deviation=deviation,
    )  # fmt: skip


@pytest.mark.slow
def test_the_dry_run_of_a_model_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", "--only", "model", "--out", str(tmp_path)]) == 0
    result = Result.model_validate_json((tmp_path / "gpu.json").read_text())
    assert not result.card.measured
    assert (result.unfinished, result.rows, result.compile) == ([], [], None)
    assert result.models is not None
    assert result.models.finite == {"qdc": True, "bf16": True}
    assert all(set(step.seconds) == {"qdc", "bf16"} for step in result.models.steps)
    text = (tmp_path / "gpu.md").read_text()
    assert text == page(result)
    assert text in capsys.readouterr().out
    assert NOT_MEASURED in text
    assert all(target.met is None for target in targets(result))


@pytest.mark.slow
def test_the_dry_run_runs_everything_and_measures_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--dry-run", "--out", str(tmp_path)]) == 0
    result = Result.model_validate_json((tmp_path / "gpu.json").read_text())
    assert not result.card.measured
    assert result.unfinished == []
    assert len(result.tuned) == 2
    assert len(result.rows) == len(DRY.shapes) * len(DRY.tokens)
    for found in result.rows:
        assert {"bf16", "qdc"} <= set(found.seconds)
        assert set(found.how.values()) == {"dry run"}
        assert found.deviation is not None
        assert 0 < found.deviation <= 1
    assert result.models is not None
    assert result.models.finite == {"qdc": True, "bf16": True}
    assert all(set(step.seconds) == {"qdc", "bf16"} for step in result.models.steps)
    assert result.compile is not None
    assert result.compile.failed == ""
    assert "daq-lower" in result.compile.passes
    text = (tmp_path / "gpu.md").read_text()
    assert text == page(result)
    assert text in capsys.readouterr().out
    assert NOT_MEASURED in text
    assert not any(f"{1e6 * found.seconds['qdc']:.1f}" in text for found in result.rows)
    assert "met" not in text.replace("method", "")
    assert all(target.met is None for target in targets(result))


def test_a_dry_run_never_goes_into_the_pages(tmp_path: Path) -> None:
    docs = tmp_path / "benchmarks.md"
    docs.write_text("# Measurements\n")
    assert main(["--dry-run", "--out", str(tmp_path), "--docs", str(docs)]) == 1
    assert docs.read_text() == "# Measurements\n"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "--dry-run" in capsys.readouterr().err


def test_a_second_run_replaces_the_first_in_the_page(tmp_path: Path) -> None:
    docs = tmp_path / "benchmarks.md"
    docs.write_text("# Measurements\n\nbefore\n")
    _insert(docs, "first")
    docs.write_text(docs.read_text() + "\nbehind\n")
    _insert(docs, "second")
    mark = MARK.format(PART)
    assert docs.read_text() == f"# Measurements\n\nbefore\n\n{mark}\n\nsecond\n\n{END}\n\nbehind\n"


def test_a_peer_that_fails_is_named_and_the_others_go_on() -> None:
    def works(weight: Tensor) -> Linear:
        return lambda x: x @ weight.T

    def fails(weight: Tensor) -> Linear:
        raise RuntimeError("needs sm_90\nand more")

    sizes = replace(DRY, shapes=(Shape("toy", "one", (16,), 32),), tokens=(1,))
    rows: list[linears.Row] = []
    peers = {"good": works, "bad": fails}
    linears.measure(Clock(CPU, 60), card(measured=False), sizes, rows, peers)
    assert set(rows[0].seconds) == {"qdc", "bf16", "good"}
    assert rows[0].failed == {"bad": "needs sm_90"}
    with pytest.raises(OutOfTime):
        linears.measure(Clock(CPU, 0), card(measured=False), sizes, rows, peers)


def test_targets_are_met_or_missed_by_the_worst_shape() -> None:
    models = Models(layers=32, weight_bytes={"bf16": 100, "qdc": 20})
    rows = [row(1, 3.0, 0.5), row(16, 3.0, 1.1), row(64, 2.0, 1.0), row(4096, 1.0, 1.0)]
    result = Result(date="d", command="c", card=card(measured=True), rows=rows, models=models)
    verdicts = [target.met for target in targets(result)]
    assert verdicts == [False, True, True, True, None, True]
    text = page(result)
    assert (
        "| M <= 16, every 2-bit shape | at least 3.0 x bf16 | 2.73 x at the least, median 4.36 x |"
        in text
    )
    assert "**missed**" in text
    assert "500000.0 | 6.00 x" in text
    result.rows[2] = row(64, 2.0, 1.0, deviation=1.5)
    assert [target.met for target in targets(result)][-1] is False
    result.rows.append(row(64, 1.0, 1.0).model_copy(update={"codec": "uniform"}))
    assert [target.met for target in targets(result)][1] is True
    result.rows.append(row(64, 2.0, 1.0).model_copy(update={"seconds": {"bf16": 1.0}}))
    assert [target.met for target in targets(result)][1] is None


def test_shapes_are_those_of_the_models() -> None:
    shapes = {(shape.model, shape.layer): shape for shape in FULL.shapes}
    assert shapes["LLaDA-8B", "gate/up"].rows == (12288, 12288)
    assert shapes["Dream-7B", "k or v"].rows == (512,)
    codec = codec_of("multi-binary", 4096, 4096)
    assert json.loads(codec.model_dump_json())["orders"].count(2) == 28
    assert codec.payload_bits == 2 * 4096 * 4096
