"""``qdc compile`` on a good model: what it writes, prints and reports."""

import json
from pathlib import Path

import pytest

from qdc.cli import run
from qdc.report.model import CompileReport
from tests.cli.conftest import Command
from tests.support.checkpoints import write_checkpoint
from tests.support.commands import qdc as command
from tests.support.compiles import PLAIN

SMALL = ("--samples", 4, "--length", 16)
METHOD = ("--passes", PLAIN, *SMALL)
RTN = ("--passes", "rtn-lower,pack")


@pytest.fixture(scope="module")
def compiled(model: Path) -> tuple[Path, dict[str, object], str]:
    """One compile by the real command, with every kind of output: folder, report, stderr."""
    out = model.with_name("compiled")
    found = command(
        "compile", model, "-o", out, *METHOD, "--dump-after", "sensitivity,pack", "--seed", 3,
        "--timings", "--remarks", "--json",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return out, json.loads(found.stdout), found.stderr


def test_report_is_complete(compiled: tuple[Path, dict[str, object], str]) -> None:
    out, data, _ = compiled
    derived = {"bits_word", "sign_bits", "effective_bits", "whole_bits", "error_by_kind"}
    report = CompileReport.model_validate({k: v for k, v in data.items() if k not in derived})
    assert report.out == str(out)
    assert report.pipeline == (
        "stages(calibrate-mcs{samples=4 length=16 seed=3},sensitivity,abmp-allocate,daq-lower),pack"
    )
    assert data["sign_bits"] == {"exact": "2", "value": 2.0}
    assert data["bits_word"] == "sign bits"
    assert len(report.layers) == 14
    assert [row.name for row in report.passes][-1] == "pack"
    assert all(row.peak_bytes > 0 and row.units > 0 for row in report.passes)
    assert any(
        line.startswith("passed daq-lower %blocks.0.q_proj error=") for line in report.remarks
    )


def test_artifact_is_as_large_as_reported(compiled: tuple[Path, dict[str, object], str]) -> None:
    out, data, _ = compiled
    assert sum(path.stat().st_size for path in out.iterdir()) == data["bytes_after"]


def test_stderr_stays_empty_when_it_is_no_terminal(
    compiled: tuple[Path, dict[str, object], str],
) -> None:
    assert compiled[2] == ""


def test_dumps_lie_beside_the_artifact(compiled: tuple[Path, dict[str, object], str]) -> None:
    out, data, _ = compiled
    folder = out.with_name("compiled-dumps")
    names = ["02_sensitivity.qdc", "02_sensitivity.txt", "05_pack.qdc", "05_pack.txt"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert data["dumps"] == [str(folder / name) for name in names]


def test_summary_has_every_figure(model: Path, tmp_path: Path, qdc: Command) -> None:
    text = qdc("compile", model, "-o", tmp_path / "out", *METHOD)
    assert max(map(len, text.splitlines())) <= 100
    for line in (
        "blocks.*.ff_out  ",
        "sign bits       2 a weight, exactly",
        "effective bits  ",
        "coverage        14 tensors quantized, 7 kept",
        "forwards        ",
        "before          ",
        "GiB" if "GB" in text else "MiB",
        "peak memory     ",
    ):
        assert line in text
    assert "calibrate-mcs  " not in text


def test_timings_and_remarks_are_shown_on_request(
    model: Path, tmp_path: Path, qdc: Command
) -> None:
    text = qdc("compile", model, "-o", tmp_path / "out", *RTN, "--timings", "--remarks")
    assert "\nrtn-lower      2 " in text
    assert "\npassed rtn-lower %blocks.1.ff_out" in text


def test_stop_after_writes_the_ir_and_no_artifact(
    model: Path, tmp_path: Path, qdc: Command
) -> None:
    text = qdc("compile", model, "-o", tmp_path / "out", *METHOD, "--stop-after", "abmp-allocate")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out-dumps"]
    assert "written" not in text
    shown = qdc("show", tmp_path / "out-dumps" / "03_abmp-allocate.qdc", "--only", "*.q_proj")
    assert "@orders" in shown
    assert "@daq" not in shown


def test_dump_folder_may_be_chosen(model: Path, tmp_path: Path, qdc: Command) -> None:
    qdc(
        "compile", model, "-o", tmp_path / "out", *RTN,
        "--dump-after", "all", "--dump-dir", tmp_path / "ir",
    )  # fmt: skip
    assert sorted(path.name for path in (tmp_path / "ir").glob("*.txt")) == [
        "01_rtn-lower.txt",
        "02_pack.txt",
    ]


def test_diff_of_two_dumps_is_what_the_pass_did(model: Path, tmp_path: Path, qdc: Command) -> None:
    qdc(
        "compile", model, "-o", tmp_path / "out", *METHOD,
        "--dump-after", "all", "--stop-after", "daq-lower",
    )  # fmt: skip
    dumps = sorted((tmp_path / "out-dumps").glob("*.txt"))
    texts = [dump.read_text().splitlines() for dump in dumps]
    tags = [{"@moment"}, {"@factor", "@salience"}, {"@orders"}, {"@daq"}]
    before = qdc("show", model).splitlines()
    for text, expected in zip(texts, tags, strict=True):
        added = [line for line in text if line not in before]
        assert {line.split()[0] for line in added} == {"after", *expected}
        assert [line for line in before if line not in text] == [
            line for line in before if line.startswith("  after ")
        ]
        before = text


def test_force_replaces_an_artifact(model: Path, tmp_path: Path, qdc: Command) -> None:
    for passes in ("rtn-lower,pack", "rtn-lower{bits=4},pack"):
        qdc("compile", model, "-o", tmp_path / "out", "--passes", passes, "--force")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["quantization_config"]["pipeline"] == "rtn-lower{bits=4},pack"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out-report"]


def test_calibration_file_is_read_and_named(
    model: Path, text: Path, tmp_path: Path, qdc: Command
) -> None:
    lines = tmp_path / "long.jsonl"
    lines.write_text(json.dumps({"body": text.read_text() * 10}) + "\n", encoding="utf-8")
    report = json.loads(
        qdc(
            "compile", model, "-o", tmp_path / "out", *SMALL, "--passes", "rtn", "--json",
            "--calibration", lines, "--text-field", "body",
        )
    )  # fmt: skip
    assert report["calibration"].startswith("long.jsonl sha256:")


def test_records_that_hold_nothing_are_counted(
    model: Path, text: Path, tmp_path: Path, qdc: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """By every command that reads text; a summary without any has no such line."""
    file = tmp_path / "corpus.json"
    record = {"text": text.read_text() * 10}
    file.write_text(json.dumps([record, {"text": None}, {"text": " "}]), encoding="utf-8")
    given = ("--calibration", file)
    asked = ("compile", model, *SMALL, "--passes", "rtn")
    said = "2 of 3 records hold nothing"
    lines = qdc(*asked, "-o", tmp_path / "out", *given).splitlines()
    assert [line.split("  ")[0] for line in lines if line.endswith(said)] == ["left out"]
    report = json.loads(qdc(*asked, "-o", tmp_path / "data", *given, "--json"))
    assert report["calibration_left_out"] == said
    assert "left out" not in qdc(*asked, "-o", tmp_path / "whole")
    planned = json.loads(qdc("plan", model, *SMALL, *given, "--json"))
    assert any(said in warning for warning in planned["warnings"])
    few = ("--samples", 4, "--length", 24, "--ratios", "1")
    assert run([str(word) for word in ("inspect-calibration", model, *few, *given)]) == 0
    assert capsys.readouterr().err == f"corpus.json: {said} and are left out\n"
    assert run([str(word) for word in ("eval", model, "--text", file, "--windows", 2)]) == 0
    assert capsys.readouterr().err == f"corpus.json: {said} and are left out\n"


def test_fields_that_nothing_knows_are_shown_everywhere(tmp_path: Path, qdc: Command) -> None:
    model = write_checkpoint(
        tmp_path / "model", edit_config=lambda config: config.update(lora_alpha=16)
    )
    told = "config.json has a field that llada does not know, not used: lora_alpha"
    assert told in " ".join(qdc("compile", model, "-o", tmp_path / "out", *RTN).split())
    data = json.loads(qdc("compile", model, "-o", tmp_path / "again", *RTN, "--json"))
    assert data["unused_fields"] == told
    written = json.loads((tmp_path / "again-report" / "report.json").read_text(encoding="utf-8"))
    assert written["unused_fields"] == told
    assert told in (tmp_path / "again-report" / "report.html").read_text(encoding="utf-8")
    planned = json.loads(qdc("plan", model, "--passes", "rtn-lower,pack", "--json"))
    assert told in planned["warnings"]


def test_a_quantization_that_is_null_is_none(tmp_path: Path, qdc: Command) -> None:
    model = write_checkpoint(
        tmp_path / "model", edit_config=lambda config: config.update(quantization_config=None)
    )
    assert "quantized" in qdc("compile", model, "-o", tmp_path / "out", *RTN)
    assert "%blocks.0.q_proj" in qdc("show", model)
    assert qdc("run", model, "a <mask>(2) b").strip()
    assert qdc("run", tmp_path / "out", "a <mask>(2) b").strip()
