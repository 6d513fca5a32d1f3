"""``qdc compare`` from beginning to end, on a tiny model: processes, what is kept, what fails."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import qdc
from qdc.cli import run
from qdc.comparing import runner, scratch
from qdc.comparing.result import Result
from qdc.comparing.table import CompareResult
from qdc.errors import OutputExists, QdcError, UnknownName
from qdc.evaluation.evaluate import compare, held_out
from qdc.frontend.encoding import open_encoder
from qdc.text.source import read_text
from tests.support.commands import environment

FAILING = '''
"""A pass that gives up on the second region."""

from typing import ClassVar

from qdc import Pass, QdcError, Unit


class GiveUp(Pass):
    """Give up."""

    name: ClassVar[str] = "give-up"

    def run(self, unit: Unit) -> None:
        """Refuse the model."""
        raise QdcError("this model is not for me", help="try another one")
'''
METHODS = (
    "data-free,small=stages(calibrate-mcs,rtn-lower{group=32}),pack,broken=give-up,rtn-lower,pack"
)
SHORT: dict[str, Any] = {"samples": 4, "length": 16, "windows": 8, "held_length": 16, "masks": 1}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "give_up.py"
    path.write_text(FAILING, encoding="utf-8")
    return path


class Run(NamedTuple):
    """A comparison that was stopped after its first method, and went on."""

    result: CompareResult
    out: Path
    told: list[str]
    """Jobs that ended in the second run."""
    kept: Path
    """The result of the first method."""
    written: int
    """When it was written, in nanoseconds, as the first run ended."""


def options(model: Path, held_out: Path, out: Path, plugin: Path) -> list[str]:
    """The arguments of the command."""
    return ["compare", str(model), "--methods", METHODS, *FLAGS, "--text", str(held_out),
            "--out", str(out), "--plugin", str(plugin), "--seeds", "3"]  # fmt: skip


def killed(model: Path, held_out: Path, out: Path, plugin: Path) -> None:
    """Kill the command when its first method is done."""
    child = subprocess.Popen(
        [sys.executable, "-m", "qdc", *options(model, held_out, out, plugin)],
        env=environment(), stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    assert child.stderr is not None
    assert "1/3  done    data-free" in child.stderr.readline()
    child.kill()
    child.wait()
    child.stderr.close()


def begun(model: Path, held_out: Path, out: Path, plugin: Path) -> None:
    """Compare the first method alone."""
    assert compare_in(model, held_out, out, plugin, METHODS.partition(",")[0])[1] == ["data-free"]


def compare_in(
    model: Path, held_out: Path, out: Path, plugin: Path, methods: str = METHODS
) -> tuple[CompareResult, list[str]]:
    """Compare in this process; returns the jobs that ended too."""
    told = list[str]()
    result = qdc.compare(
        model, methods, text=held_out, out=out, plugins=plugin, threads=1, seeds=3,
        progress=lambda what, done, total: told.append(what), **SHORT,
    )  # fmt: skip
    return result, told


@pytest.fixture(scope="module", params=[begun, pytest.param(killed, marks=pytest.mark.slow)])
def compared(request: pytest.FixtureRequest, model: Path, held_out: Path, plugin: Path) -> Run:
    """Two methods that work and one that does not."""
    out = model.with_name(request.param.__name__)
    request.param(model, held_out, out, plugin)
    [kept] = results_in(out)
    written = kept.stat().st_mtime_ns
    result, told = compare_in(model, held_out, out, plugin)
    return Run(result, out, told, kept, written)


def results_in(out: Path) -> list[Path]:
    """The files of single results."""
    return [p for p in (out / "results").glob("*.json") if not p.name.startswith("original-")]


def test_stopped_and_started_again_it_goes_on(compared: Run) -> None:
    assert compared.told == ["small seed 3", "broken"]
    assert compared.kept.stat().st_mtime_ns == compared.written
    assert len(results_in(compared.out)) == 2


def test_one_method_that_fails_does_not_lose_the_others(compared: Run) -> None:
    result = compared.result
    rows = {row.name: row for row in result.rows}
    assert set(rows) == {"data-free", "small", "broken"}
    assert [row.name for row in result.failed] == ["broken"]
    assert "this model is not for me" in rows["broken"].error
    assert "try another one" in rows["broken"].error
    assert rows["broken"].rises == ()
    assert rows["small"].seeds == (3,)
    assert rows["data-free"].seeds == (None,)


def test_figures_are_those_of_a_compile_and_an_evaluation(
    compared: Run, model: Path, held_out: Path, tmp_path: Path
) -> None:
    row = next(row for row in compared.result.rows if row.name == "data-free")
    report = qdc.compile(model, "data-free", out=tmp_path / "out", write_report=False)
    assert row.code_bits == float(report.sign_bits)
    assert row.effective_bits == report.effective_bits
    assert row.file_bytes == report.tensor_bytes
    windows, owners, _ = _windows(model, held_out)
    due = compare(
        qdc.load(tmp_path / "out", backend="reference"),
        qdc.load_original(model),
        windows,
        1,
        seeds=(0,),
        owners=owners,
    )
    for found, expected, original in zip(
        row.rises, due.differences, compared.result.original, strict=True
    ):
        assert found.rise == pytest.approx(expected.rise, abs=1e-6)
        assert found.standard_error == pytest.approx(expected.standard_error, abs=1e-6)
        assert found.interval == pytest.approx(expected.interval, abs=1e-6)
        assert original.ratio == found.ratio == expected.ratio
    assert [row.loss for row in compared.result.original] == pytest.approx(
        [row.loss for row in due.original.ratios], abs=1e-6
    )
    agreement = due.agreements[1]
    assert row.top1 == pytest.approx(agreement.top1)
    assert row.divergence == pytest.approx(agreement.divergence, abs=1e-6)
    assert row.divergence_interval == pytest.approx(agreement.divergence_interval, abs=1e-6)
    assert set(row.layer_errors) == {layer.name for layer in report.layers}


def _windows(model: Path, text: Path) -> Any:
    source = read_text(text)
    return held_out(source.documents, open_encoder(model), 16, 8)


def test_data_and_page_lie_in_the_folder(compared: Run) -> None:
    result, out = compared.result, compared.out
    data = (out / "compare.json").read_text(encoding="utf-8")
    assert CompareResult.model_validate_json(data) == result
    page = (out / "compare.html").read_text(encoding="utf-8")
    assert "this model is not for me" in page
    kept = [name for row in result.rows for name in row.results]
    assert len(kept) == 2
    files = {path.name for path in (out / "results").iterdir() if path.suffix == ".json"}
    assert files == {*kept, *(name for name in files if name.startswith("original-"))}
    for name in kept:
        found = Result.model_validate_json((out / "results" / name).read_bytes())
        assert f"{found.digest}.json" == name
        assert found.cost.peak_bytes > 10**7
    assert not (out / "results" / scratch.FOLDER).exists()


def test_what_is_done_is_not_done_again(
    compared: Run, model: Path, held_out: Path, plugin: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The very same command, whose failing method alone is tried again; its exit code says so."""
    out, ran = compared.out, list[str]()

    def call(command: list[str], threads: int, *rest: object) -> tuple[int, str]:
        work = json.loads(Path(command[-2]).read_text(encoding="utf-8"))
        ran.append(work["name"])
        return 1, "Traceback\nerror[QDC100] out of luck\n  help  none"

    monkeypatch.setattr(runner, "call", call)
    arguments = options(model, held_out, out, plugin)
    assert run([*arguments, "--json"]) == 1
    assert ran == ["broken"]
    told = capsys.readouterr()
    again = CompareResult.model_validate_json(told.out)
    assert "failed  broken: error[QDC100] out of luck" in told.err
    assert [row.error for row in again.failed] == ["error[QDC100] out of luck\n  help  none"]
    assert again.rows[:2] == compared.result.rows[:2]
    small = ["--methods", METHODS.partition(",broken")[0]]
    assert run([*arguments[:2], *small, *arguments[4:]]) == 0
    assert "page: " in capsys.readouterr().out


def test_a_process_ends_with_its_parent() -> None:
    """Whatever ends the parent: nobody is there to send a signal."""
    code = (
        "import time\n"
        "from qdc.comparing.lifeline import end_with_parent\n"
        "end_with_parent()\n"
        "print('here', flush=True)\n"
        "time.sleep(60)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env=environment(),
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdin is not None
    assert child.stdout.readline() == b"here\n"
    child.stdin.close()
    assert child.wait(timeout=30) == 1
    child.stdout.close()


def test_a_signal_says_what_is_kept(
    model: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(command: list[str], threads: int, *rest: object) -> tuple[int, str]:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return 1, ""

    monkeypatch.setattr(runner, "call", call)
    with pytest.raises(KeyboardInterrupt) as error:
        qdc.compare(model, "rtn,gptq,data-free", text=held_out, out=tmp_path / "out", **SHORT)
    [note] = error.value.__notes__
    assert note.startswith("0 of 3 results are kept in ")
    assert "the same command goes on" in note


def test_mistakes_are_found_before_anything_runs(
    model: Path, held_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(*arguments: object) -> tuple[int, str]:
        raise AssertionError("nothing is to run")

    monkeypatch.setattr(runner, "call", call)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").touch()
    empty = tmp_path / "empty.txt"
    empty.write_text("a\n", encoding="utf-8")

    def asked(methods: str = "rtn", text: Path = held_out, out: Path = tmp_path / "out",
              **given: Any) -> None:  # fmt: skip
        qdc.compare(model, methods, text=text, out=out, **(SHORT | given))

    with pytest.raises(UnknownName, match="gpqt"):
        asked("rtn,gpqt")
    with pytest.raises(UnknownName, match="geometri"):
        asked(vary="geometri=clean,mcs")
    with pytest.raises(OutputExists):
        asked(out=taken)
    with pytest.raises(QdcError, match="documents"):
        asked(text=empty)
    with pytest.raises(QdcError, match="beyond the model's"):
        asked(held_length=4096)
    for wrong in ({"seeds": "0,0"}, {"seeds": "a"}, {"masks": 0}, {"windows": 1}, {"jobs": 0},
                  {"ratios": "2"}, {"vary": "samples=1,2"}, {"chat_fields": "a,b"}):  # fmt: skip
        with pytest.raises(QdcError):
            asked(**wrong)
    assert not (tmp_path / "out").exists()
