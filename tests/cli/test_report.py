"""``qdc report`` and ``qdc eval --report``."""

import json
import shutil
from pathlib import Path

import pytest

from qdc.cli.evaluate import evaluate_command
from qdc.cli.report import report_of
from qdc.errors import QdcError
from qdc.evaluation.options import EvaluationOptions
from tests.cli.conftest import Command
from tests.support.commands import qdc as command
from tests.support.compiles import compile_tiny

WINDOWS = ("--windows", 2, "--length", 8, "--seeds", 1, "--ratios", "0.5,0.9")


@pytest.fixture(scope="module")
def built(model: Path) -> Path:
    """An artifact with its report."""
    out = model.with_name("reported")
    compile_tiny(model, out, "rtn-lower,pack", write_report=True)
    return out


@pytest.fixture
def out(built: Path, tmp_path: Path) -> Path:
    """The same in a folder of its own."""
    for name in ("reported", "reported-report"):
        shutil.copytree(built.with_name(name), tmp_path / name)
    return tmp_path / "reported"


def test_the_page_is_written_again(out: Path, qdc: Command) -> None:
    page = out.with_name("reported-report") / "report.html"
    before = page.read_bytes()
    page.write_text("old")
    for place in (out, page.parent, page.with_name("report.json")):
        assert qdc("report", place) == f"{page}\n"
        assert page.read_bytes() == before
    assert qdc("report", out, "-o", out.with_name("copy.html")) == f"{out.with_name('copy.html')}\n"
    assert out.with_name("copy.html").read_bytes() == before


def test_json_is_that_of_the_compile(model: Path, tmp_path: Path, qdc: Command) -> None:
    printed = json.loads(
        qdc("compile", model, "-o", tmp_path / "out", "--passes", "rtn-lower,pack", "--json")
    )
    written = json.loads((tmp_path / "out-report" / "report.json").read_text(encoding="utf-8"))
    assert printed == written == json.loads(qdc("report", tmp_path / "out", "--json"))
    assert printed["report"] == str(tmp_path / "out-report" / "report.html")


def test_nothing_is_said_where_no_cache_can_be_kept(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setenv("MPLCONFIGDIR", "/dev/null/none")
    found = command("report", out)
    assert (found.returncode, found.stderr) == (0, "")


def test_no_report_writes_none(model: Path, tmp_path: Path, qdc: Command) -> None:
    text = qdc(
        "compile", model, "-o", tmp_path / "out", "--passes", "rtn-lower,pack", "--no-report"
    )
    assert "\nreport " not in text
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("compared", [True, False])
def test_an_evaluation_is_added(
    compared: bool, out: Path, model: Path, text: Path, qdc: Command
) -> None:
    against = ("--against", model) if compared else ()
    before = json.loads(qdc("report", out, "--json"))
    result = json.loads(qdc("eval", out, "--text", text, *against, *WINDOWS, "--report", "--json"))
    after = json.loads(qdc("report", out, "--json"))
    found = after.pop("evaluation")
    assert before.pop("evaluation") is None
    assert after == before
    assert found["result"] == result
    assert found["against"] == (str(model) if compared else None)
    assert found["text"].startswith("text.jsonl sha256:")
    page = (out.with_name("reported-report") / "report.html").read_text(encoding="utf-8")
    mine = result["candidate"] if compared else result
    assert all(f"{row['loss']:.4f}" in page for row in mine["ratios"])
    assert ("standard error</th>" in page) == compared
    for row in result.get("agreements", ()):
        low, high = row["divergence_interval"]
        assert f'{row["divergence"]:.4f}</td><td class="n">{low:.4f} .. {high:.4f}' in page


def test_what_is_no_report_is_refused(out: Path, model: Path, refused: Command) -> None:
    assert "has no report" in refused("report", model)
    assert "leave one out" in refused("report", out, "--json", "-o", "page.html")
    assert "cannot write to" in refused("report", out, "-o", out / "no" / "page.html")


def test_the_report_of_another_artifact_is_refused(
    out: Path, model: Path, text: Path, refused: Command
) -> None:
    (out / "added.json").write_text("{}")
    message = refused("eval", out, "--text", text, *WINDOWS, "--report")
    assert "the report is of another artifact" in message
    assert "has no report" in refused("eval", model, "--text", text, *WINDOWS, "--report")


def test_the_report_of_an_artifact_replaced_meanwhile_is_left_alone(
    out: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (out.with_name("reported-report") / "report.json").read_bytes()
    found = report_of(out)
    later = iter([found, found.model_copy(update={"artifact_sha256": "0" * 64})])
    monkeypatch.setattr("qdc.cli.evaluate.report_of", lambda artifact: next(later))
    with pytest.raises(QdcError, match="was replaced while"):
        evaluate_command(
            EvaluationOptions(
                models=(out,), text=text, ratios=(0.5,), length=8, windows=2, seeds=1, report=True
            ),
            as_json=True,
        )
    assert (out.with_name("reported-report") / "report.json").read_bytes() == before
