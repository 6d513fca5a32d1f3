"""Plugins that end the process, or try to: exit code 2 and one message that names them."""

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import qdc
from qdc.cli import run
from qdc.errors import QdcError
from tests.support.commands import environment

RAISED = {
    "sys.exit(0)": "SystemExit: 0",
    "sys.exit()": "SystemExit",
    "raise BrokenPipeError(32, 'gone')": "BrokenPipeError: [Errno 32] gone",
    "raise EOFError('no more')": "EOFError: no more",
    "raise GeneratorExit": "GeneratorExit",
    "raise Odd('odd')": "Odd: odd",
}
START = """
import sys
from typing import Any, ClassVar

from qdc import Pass, Unit
from qdc.backends.reference import Reference


class Odd(BaseException):
    pass


"""
PASS = """
class Ends(Pass):
    name: ClassVar[str] = "ends"

    def run(self, unit: Unit) -> None:
        {end}
"""
BACKEND = """
class Ends(Reference):
    name: ClassVar[str] = "ends"

    def emit_region(self, *arguments: Any) -> None:
        {end}
"""


def check_ended(code: int, errors: str, raised: str) -> None:
    assert code == 2
    lines = errors.splitlines()
    assert lines[0] == f"error[QDC900] the command was ended from inside: {raised}"
    assert sum(line.startswith("error[") for line in lines) == 1
    assert "Traceback" not in errors
    assert "  this is a bug of the plugin ends.py, line " in errors


@pytest.mark.parametrize("end", RAISED)
@pytest.mark.parametrize("kind", ["pass", "backend"])
def test_a_compile_that_a_plugin_ends_has_not_succeeded(
    kind: str, end: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "ends.py"
    plugin.write_text(START + (PASS if kind == "pass" else BACKEND).format(end=end))
    chosen = ["--passes", "rtn-lower,ends,pack"] if kind == "pass" else ["--backend", "ends"]
    if kind == "backend":
        chosen += ["--passes", "rtn-lower,pack"]
    code = run(
        ["compile", str(model), "-o", str(tmp_path / "out"), "--plugin", str(plugin), *chosen]
    )
    output, errors = capsys.readouterr()
    check_ended(code, errors, RAISED[end])
    assert output == ""
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out-repro").exists() == (kind == "pass")


@pytest.mark.parametrize("end", ["sys.exit(0)", "raise GeneratorExit", "raise Odd('odd')"])
@pytest.mark.parametrize("kind", ["pass", "backend"])
def test_a_plugin_does_not_end_who_compiles_from_python(
    kind: str, end: str, model: Path, tmp_path: Path
) -> None:
    plugin = tmp_path / "ends.py"
    plugin.write_text(START + (PASS if kind == "pass" else BACKEND).format(end=end))
    passes, backend = ("rtn-lower,ends,pack", "reference")
    if kind == "backend":
        passes, backend = ("rtn-lower,pack", "ends")
    with pytest.raises(QdcError) as caught:
        qdc.compile(model, passes, backend, out=tmp_path / "out", plugins=[plugin])
    told = f"the plugin ends.py, line {{}}, would have ended the process: {RAISED[end]}"
    lines = range(1, 40)
    assert caught.value.what in {told.format(line) for line in lines}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit(3)])
def test_who_compiles_from_python_may_end_it(
    end: BaseException, model: Path, tmp_path: Path
) -> None:
    """Its own code, as that which shows the progress, is no plugin."""

    def progress(*arguments: object) -> None:
        raise end

    with pytest.raises(end if isinstance(end, type) else type(end)):
        qdc.compile(model, "rtn-lower,pack", out=tmp_path / "out", progress=progress)


@pytest.mark.parametrize("end", ["sys.exit(0)", "raise Odd('odd')"])
def test_a_file_that_ends_the_process_as_it_is_imported_is_refused(
    end: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "ends.py"
    plugin.write_text(START + end)
    assert run(["passes", "--plugin", str(plugin)]) == 1
    error = capsys.readouterr().err
    assert f"the plugin does not import: {RAISED[end]}" in error
    assert "ends.py, line 13" in error


def test_an_installed_plugin_is_named_by_its_entry_point(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ends_package.py").write_text(START + PASS.format(end="sys.exit(0)"))
    monkeypatch.syspath_prepend(tmp_path)

    def entry_points(*, group: str) -> list[EntryPoint]:
        found = EntryPoint(name="ends", value="ends_package:Ends", group="qdc.passes")
        return [found] if group == found.group else []

    monkeypatch.setattr("qdc.pipeline.registry.entry_points", entry_points)
    arguments = ["compile", str(model), "-o", str(tmp_path / "out")]
    assert run([*arguments, "--passes", "rtn-lower,ends,pack"]) == 2
    error = capsys.readouterr().err
    assert "SystemExit: 0" in error
    assert "a bug of the installed plugin ends_package:Ends, line " in error


def test_a_plugin_that_writes_to_a_closed_pipe_does_not_end_a_compile_in_success(
    model: Path, tmp_path: Path
) -> None:
    """``qdc compile --plugin noisy.py | head -1``: nothing was written, so it has failed."""
    plugin = tmp_path / "ends.py"
    plugin.write_text(START + PASS.format(end="print('x' * 100_000, flush=True)"))
    process = subprocess.Popen(
        [sys.executable, "-m", "qdc", "compile", model, "-o", tmp_path / "out",
         "--plugin", plugin, "--passes", "rtn-lower,ends,pack"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    check_ended(process.wait(timeout=100), errors, "BrokenPipeError: [Errno 32] Broken pipe")
    assert not (tmp_path / "out").exists()


STRATEGY = """
from qdc.runtime.decoding.llada import LladaSampler


class Ends(LladaSampler):
    name: ClassVar[str] = "ends"

    def choose(self, *arguments: Any) -> Any:
        sys.exit(0)
"""


def test_a_strategy_that_ends_the_process_has_not_answered(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plugin = tmp_path / "ends.py"
    plugin.write_text(START + STRATEGY)
    code = run(
        ["generate", str(model), "def f(x):", "--plugin", str(plugin), "--strategy", "ends",
         "--length", "4"]
    )  # fmt: skip
    check_ended(code, capsys.readouterr().err, "SystemExit: 0")
