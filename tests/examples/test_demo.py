"""The last line of ``make demo`` is a command that can be copied as it stands."""

import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from qdc.cli.terminal import console

demo = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "examples" / "demo.py")))
LONG = Path("a/folder/with/a/name/so/long/that/no/terminal/of/eighty/columns/holds/the/line")


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with an environment in it that is not active."""
    script = tmp_path / ".venv" / "bin" / "qdc"
    script.parent.mkdir(parents=True)
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_next_line_names_the_command_by_its_place(environment: Path) -> None:
    words = shlex.split(demo.next_line(Path("out/demo")))
    assert words[:3] == [".venv/bin/qdc", "eval", "out/demo"]
    assert Path(words[-1]).name == "heldout.jsonl"


def test_next_line_names_it_shortly_where_the_environment_is_active(
    environment: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(environment / ".venv" / "bin"))
    assert demo.next_line(Path("out/demo")).startswith("qdc eval out/demo ")


def test_next_line_works_without_a_script(environment: Path) -> None:
    (environment / ".venv" / "bin" / "qdc").unlink()
    assert demo.next_line(Path("my out")).startswith(".venv/bin/python -m qdc eval 'my out' ")


def test_next_line_is_one_line(
    environment: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    demo.print_next(console(), LONG)
    assert capsys.readouterr().out == f"\nnext: {demo.next_line(LONG)}\n"
