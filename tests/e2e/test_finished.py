"""``--resume`` where nothing is left to do: the same inputs are complete, others are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import qdc
from qdc.cli import run
from qdc.errors import OutputExists
from qdc.report.model import CompileReport
from tests.support.checkpoints import write_checkpoint

PASSES = "quantize-vocab,rtn-lower,pack"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("finished") / "model")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def compile_(model: Path, out: Path, **options: Any) -> CompileReport:
    return qdc.compile(model, options.pop("passes", PASSES), out=out, **options)


def test_a_finished_compile_is_complete(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["compile", str(model), "-o", str(out), "--passes", PASSES, "--resume", "--json"]
    assert run(arguments) == 0
    first = json.loads(capsys.readouterr().out)
    before = contents(tmp_path)
    assert run(arguments) == 0
    again = capsys.readouterr()
    assert json.loads(again.out) == first
    assert contents(tmp_path) == before
    assert run(arguments[:-1]) == 0
    said = capsys.readouterr().out.split()
    assert "".join(said[said.index("written") :]).startswith(f"written{out}")


def test_it_says_so_in_one_line(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compile_(model, tmp_path / "out", write_report=False)
    assert caplog.messages == []
    compile_(model, tmp_path / "out", write_report=False, resume=True)
    assert caplog.messages == [f"{tmp_path / 'out'} is complete: there is nothing to resume"]


def test_without_its_report_the_summary_is_read_off_the_artifact(
    model: Path, tmp_path: Path
) -> None:
    first = compile_(model, tmp_path / "out", write_report=False)
    found = compile_(model, tmp_path / "out", write_report=False, resume=True)
    costs = {"passes", "peak_bytes", "seconds", "created", "layer_forwards", "remarks"}
    assert found.model_dump(exclude=costs) == first.model_dump(exclude=costs)
    assert found.seconds == 0.0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_read_off_says_what_went_in(model: Path, tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    shutil.copytree(model, odd)
    config = json.loads((odd / "config.json").read_text())
    (odd / "config.json").write_text(json.dumps({**config, "made_by": "somebody"}))
    given: dict[str, Any] = {"passes": "calibrate-mcs{samples=4 length=16},rtn-lower,pack"}
    first = compile_(odd, tmp_path / "out", write_report=False, **given)
    found = compile_(odd, tmp_path / "out", write_report=False, resume=True, **given)
    assert "made_by" in found.unused_fields
    names = {"calibration", "calibration_form", "special_tokens_left_out", "unused_fields"}
    assert found.model_dump(include=names) == first.model_dump(include=names)


def test_a_report_of_another_artifact_is_not_taken_for_its_own(model: Path, tmp_path: Path) -> None:
    other = compile_(model, tmp_path / "other", passes="rtn-lower{bits=4},pack")
    compile_(model, tmp_path / "out", write_report=False)
    (tmp_path / "other-report").rename(tmp_path / "out-report")
    found = compile_(model, tmp_path / "out", resume=True)
    assert found.pipeline == PASSES != other.pipeline
    assert not (tmp_path / "out-report").exists()


CHANGES: dict[str, dict[str, Any]] = {
    "pipeline: ": {"passes": "rtn-lower{bits=4},pack"},
    "states: ": {"states": "f32"},
    "checkpoint_sha256: ": {},
    "tokenizer.json is another": {},
    "it is damaged: ": {},
    "model-00001-of-00003.safetensors": {},
}


@pytest.mark.parametrize("named", CHANGES)
def test_other_inputs_are_refused_by_name(named: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    compile_(model, out)
    before = contents(out)
    if "checkpoint" in named:
        model = write_checkpoint(tmp_path / "m", seed=1)
    elif "tokenizer" in named:
        model = write_checkpoint(tmp_path / "m")
        (model / "tokenizer.json").write_bytes(before["tokenizer.json"] + b"\n")
    elif "damaged" in named:
        next(out.glob("*.safetensors")).unlink()
    elif named in before:  # a bit that has flipped
        (out / named).write_bytes(before[named][:-1] + bytes([before[named][-1] ^ 1]))
    before = contents(out)
    with pytest.raises(OutputExists, match="it is not what this compile would make") as caught:
        compile_(model, out, resume=True, **CHANGES[named])
    assert any(named in each for each in caught.value.where)
    assert "--force" in caught.value.help
    assert contents(out) == before
    assert not (tmp_path / ".out.partial").exists()


def test_tokens_around_texts_that_are_no_longer_asked_for_are_another_input(
    model: Path, tmp_path: Path
) -> None:
    """An artifact names them only if they were; a compile without must not take it for its own."""
    given: dict[str, Any] = {"passes": "calibrate-mcs{samples=4 length=16},rtn-lower,pack"}
    for before, now in (("none", "auto"), ("auto", "none")):
        out = tmp_path / before
        compile_(model, out, write_report=False, document_tokens=before, **given)
        compile_(model, out, resume=True, write_report=False, document_tokens=before, **given)
        with pytest.raises(OutputExists) as caught:
            compile_(model, out, resume=True, write_report=False, document_tokens=now, **given)
        assert "document_tokens: " in " ".join(caught.value.where)


def test_with_force_another_one_is_replaced(model: Path, tmp_path: Path) -> None:
    compile_(model, tmp_path / "out", passes="rtn-lower{bits=4},pack")
    found = compile_(model, tmp_path / "out", resume=True, force=True)
    assert found.pipeline == PASSES


def test_an_artifact_of_before_is_not_taken_for_this_compile(model: Path, tmp_path: Path) -> None:
    """It names its pipeline, but not the defaults of its time."""
    out = tmp_path / "out"
    compile_(model, out, write_report=False)
    (out / "qdc.sha256").unlink()
    with pytest.raises(OutputExists) as caught:
        compile_(model, out, resume=True, write_report=False)
    assert "no digests" in " ".join(caught.value.where)
