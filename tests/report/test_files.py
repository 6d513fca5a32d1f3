"""Where a report lies, and that it comes and goes with its artifact."""

import json
from pathlib import Path

import pytest

import qdc
from qdc.errors import InvalidCheckpoint, OutputExists, QdcError
from qdc.report.files import write_report
from qdc.report.model import CompileReport
from tests.report.conftest import MIXED
from tests.support.compiles import compile_tiny, run_passes, spying

RTN = "rtn-lower,pack"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def pipeline_of(out: Path) -> str:
    data = json.loads((out.with_name(f"{out.name}-report") / "report.json").read_text())
    return str(data["pipeline"])


def test_the_artifact_is_the_same_with_and_without(
    model: Path, compiled: CompileReport, tmp_path: Path
) -> None:
    assert compiled.out is not None
    compile_tiny(model, tmp_path / "out", MIXED)
    assert names(tmp_path) == ["out"]
    one, two = Path(compiled.out), tmp_path / "out"
    assert names(one) == names(two)
    assert all((one / name).read_bytes() == (two / name).read_bytes() for name in names(one))


def test_both_files_lie_beside_the_artifact(model: Path, tmp_path: Path) -> None:
    report = compile_tiny(model, tmp_path / "out", RTN, write_report=True)
    assert names(tmp_path) == ["out", "out-report"]
    assert names(tmp_path / "out-report") == ["report.html", "report.json"]
    assert report.report == str(tmp_path / "out-report" / "report.html")


def test_force_replaces_the_report_and_leaves_what_others_put_there(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    compile_tiny(model, out, RTN, write_report=True)
    (tmp_path / "out-report" / "notes.txt").write_text("mine")
    with pytest.raises(OutputExists):
        compile_tiny(model, out, "rtn-lower{bits=4},pack", write_report=True)
    assert pipeline_of(out) == RTN
    compile_tiny(model, out, "rtn-lower{bits=4},pack", write_report=True, force=True)
    assert pipeline_of(out) == "rtn-lower{bits=4},pack"
    assert names(tmp_path) == ["out", "out-report"]
    assert names(tmp_path / "out-report") == ["notes.txt", "report.html", "report.json"]
    assert caplog.messages == [], "nothing had to be mended"


def test_no_report_of_an_older_artifact_survives(model: Path, tmp_path: Path) -> None:
    compile_tiny(model, tmp_path / "out", RTN, write_report=True)
    report = compile_tiny(model, tmp_path / "out", "rtn-lower{bits=4},pack", force=True)
    assert names(tmp_path) == ["out"]
    assert report.report is None


def test_a_failed_compile_leaves_the_old_report_or_none(model: Path, tmp_path: Path) -> None:
    def fail(label: str, unit: qdc.Unit) -> None:
        raise InvalidCheckpoint("too bad")

    with pytest.raises(InvalidCheckpoint):
        run_passes(model, tmp_path, spying(fail), f"{RTN},spy")
    assert names(tmp_path) == []
    compile_tiny(model, tmp_path / "out", RTN, write_report=True)
    with pytest.raises(InvalidCheckpoint):
        run_passes(model, tmp_path, spying(fail), f"{RTN},spy", force=True)
    assert names(tmp_path) == ["out", "out-report"]
    assert pipeline_of(tmp_path / "out") == RTN


def test_a_page_that_cannot_be_drawn_leaves_no_artifact(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(report: CompileReport) -> str:
        raise RuntimeError("no ink")

    with monkeypatch.context() as patch:
        patch.setattr("qdc.report.page.render", fail)
        with pytest.raises(RuntimeError, match="no ink"):
            compile_tiny(model, tmp_path / "out", RTN, write_report=True)
    assert names(tmp_path) == [".out.partial"]
    compile_tiny(model, tmp_path / "out", RTN, write_report=True, resume=True)
    assert names(tmp_path) == ["out", "out-report"]


def test_a_pipeline_that_stops_early_writes_none(model: Path, tmp_path: Path) -> None:
    report = run_passes(model, tmp_path, spying(lambda label, unit: None), RTN, stop_after="pack")
    assert names(tmp_path) == ["out-dumps"]
    assert (report.out, report.report, report.files) == (None, None, ())


@pytest.mark.parametrize("taken", ["file", "foreign data", "foreign page", "link"])
def test_a_place_that_is_taken_is_refused_before_the_work(taken: str, tmp_path: Path) -> None:
    place = tmp_path / "out-report"
    if taken == "file":
        place.write_text("mine")
    elif taken == "link":
        place.symlink_to(tmp_path / "elsewhere")
    else:
        place.mkdir()
        name = "report.json" if taken == "foreign data" else "report.html"
        (place / name).write_text('{"mine": true}')
    with pytest.raises(OutputExists) as caught:
        compile_tiny(tmp_path / "no model", tmp_path / "out", RTN, write_report=True)
    assert str(place) in caught.value.what
    with pytest.raises(QdcError, match="config"):
        compile_tiny(tmp_path / "no model", tmp_path / "out", RTN, write_report=False)


def test_names_that_are_no_unicode_are_written(compiled: CompileReport, tmp_path: Path) -> None:
    odd = compiled.model_copy(update={"out": "/tmp/\udcff", "remarks": ("\udc80",)})
    page = write_report(odd, tmp_path / "out")
    assert "\\udc80" in page.read_text(encoding="utf-8")
    data = json.loads(page.with_name("report.json").read_text(encoding="utf-8"))
    assert data["remarks"] == ["\udc80"]
