"""Wrong plugins: a mistake of the user gives 1, a bug of the plugin gives 2 and a repro folder."""

import shlex
from pathlib import Path

import pytest

from qdc.cli import run
from qdc.ir.dump import read
from qdc.pipeline.registry import standard_registry
from tests.cli.conftest import Command, Ended

START = """
from typing import ClassVar
from qdc import Annotation, Pass, Unit
from qdc.ir.annotations import Orders

class Mine(Pass):
    name: ClassVar[str] = "mine"

    def run(self, unit: Unit) -> None:
"""
FILES = {
    "duplicate": (START.replace('"mine"', '"pack"'), ("'pack'", "qdc.passes.pack.Pack", "Mine")),
    "syntax": ("def f(:\n", ("SyntaxError", "my_pass.py")),
    "import": ("import nothing_of_this_name\n", ("nothing_of_this_name",)),
    "no pass": ("x = 1\n", ("no pass, backend, family or strategy", "docs/writing_passes.md")),
    "bad name": (START.replace('"mine"', '"a b"'), ("'a b'",)),
}


def written(folder: Path, text: str, name: str = "my_pass.py") -> Path:
    if text.startswith(START[:20]) and text.endswith("None:\n"):
        text += "        pass\n"
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize("case", FILES)
def test_file_is_refused(case: str, tmp_path: Path, refused: Command) -> None:
    text, named = FILES[case]
    message = refused("passes", "--plugin", written(tmp_path, text))
    assert [part for part in named if part not in message] == []


def test_file_that_is_no_python_is_refused(tmp_path: Path, refused: Command) -> None:
    assert "my.txt" in refused("passes", "--plugin", written(tmp_path, "x = 1\n", "my.txt"))


def test_bug_in_a_plugin_leaves_a_repro_folder(model: Path, tmp_path: Path, command: Ended) -> None:
    """The message has the command; the command, gone on with, fails in the same way."""
    plugin = written(tmp_path, f"{START}        1 / (unit.name != 'blocks.1')\n")
    found = command(
        "compile", model, "-o", tmp_path / "my out", "--plugin", plugin,
        "--passes", "rtn-lower,mine,pack",
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (2, "")
    assert "Traceback" in found.stderr
    last = found.stderr[found.stderr.index("error[QDC900]") :].splitlines()
    assert last[0] == "error[QDC900] ZeroDivisionError: division by zero"
    line = 1 + plugin.read_text(encoding="utf-8").splitlines().index(
        "        1 / (unit.name != 'blocks.1')"
    )
    assert f"  this is a bug of the plugin my_pass.py, line {line}" in last
    folder = tmp_path / "my out-repro"
    assert f"  repro: {folder}/error.txt has the command that reruns it" in last
    error = (folder / "error.txt").read_text(encoding="utf-8")
    assert "pass     mine" in error
    assert "unit     blocks.1:" in error
    assert "ZeroDivisionError" in error
    graph = read(folder / "before.qdc", standard_registry().annotations())
    assert graph.after == "rtn-lower"
    left = [".my out.partial", "my out-repro", "my_pass.py"]
    assert sorted(p.name for p in tmp_path.iterdir()) == left
    assert "  1 of 2 steps are done, the last is blocks.0; go on with --resume" in found.stderr

    (rerun,) = (line.removeprefix("  rerun ") for line in last if line.startswith("  rerun "))
    (noted,) = (line[9:] for line in error.splitlines() if line.startswith("rerun    "))
    assert rerun == noted
    program, *arguments = shlex.split(rerun)
    again = command(*arguments, "--resume")
    assert program == "qdc"
    assert again.returncode == 2
    assert last[-1].startswith("  rerun ")
    assert again.stderr.splitlines()[-len(last) : -1] == last[:-1]


def test_the_shorter_rerun_stops_at_the_same_place(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``up to`` in the repro file: options that cut the pipeline after the failing pass."""
    plugin = written(tmp_path, f"{START}        raise KeyError(unit.name)\n")
    arguments = ["compile", str(model), "-o", str(tmp_path / "out"), "--plugin", str(plugin)]
    assert run([*arguments, "--passes", "rtn-lower,mine,pack"]) == 2
    error = (tmp_path / "out-repro" / "error.txt").read_text(encoding="utf-8")
    (shorter,) = (line[9:] for line in error.splitlines() if line.startswith("up to    "))
    capsys.readouterr()
    assert run([*arguments, *shlex.split(shorter)]) == 2
    assert "error[QDC900] KeyError: 'blocks.0'" in capsys.readouterr().err


def test_pass_that_breaks_the_graph_is_a_bug(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = """        for node in unit.layers():
            unit.annotate(node, Orders(blocks=(2,), widths=(7,)))
"""
    plugin = written(tmp_path, START + body)
    arguments = ["compile", str(model), "-o", str(tmp_path / "out"), "--plugin", str(plugin)]
    code = run([*arguments, "--passes", "mine,rtn-lower,pack"])
    out, error = capsys.readouterr()
    assert (code, out) == (2, "")
    assert error.startswith("error[QDC202] mine left an invalid graph")
    assert "%blocks.0.q_proj" in error
    assert "Traceback" not in error
    assert "  rerun qdc compile " in error
    assert (tmp_path / "out-repro" / "before.txt").is_file()


def test_mistake_that_a_plugin_reports_is_none_of_its_bugs(
    model: Path, tmp_path: Path, refused: Command
) -> None:
    body = "        raise QdcError('no such layer', help='try again')\n"
    plugin = written(tmp_path, f"from qdc import QdcError\n{START}{body}")
    message = refused(
        "compile", model, "-o", tmp_path / "out", "--plugin", plugin,
        "--passes", "mine,rtn-lower,pack",
    )  # fmt: skip
    assert message.startswith("error[QDC100] no such layer\n  help  try again\n  repro: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_pass.py", "out-repro"]


def test_unknown_tags_are_shown_without_the_plugin(
    model: Path, tmp_path: Path, qdc: Command
) -> None:
    body = """        for node in unit.layers():
            unit.annotate(node, Note())

class Note(Annotation):
    tag: ClassVar[str] = "note"

    def text(self) -> str:
        return "hello"

Mine.provides = (Note,)
"""
    plugin = written(tmp_path, START + body)
    qdc(
        "compile", model, "-o", tmp_path / "out", "--plugin", plugin,
        "--passes", "mine,rtn-lower,pack",
    )  # fmt: skip
    only = ("--only", "blocks.0.q_proj", "--tags", "note")
    assert "@note      unknown tag" in qdc("show", tmp_path / "out", *only)
    assert "@note      hello" in qdc("show", tmp_path / "out", *only, "--plugin", plugin)


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("unit.annotate(node, 'kept')", "mine annotates 'kept', which is no annotation"),
        ("unit.annotate(node, Note())", "mine annotates @note, which it does not declare"),
    ],
)
def test_an_annotation_that_no_dump_could_be_read_with_is_refused(
    body: str, what: str, model: Path, tmp_path: Path, command: Ended
) -> None:
    note = "class Note(Annotation):\n    tag = 'note'\n    def text(self): return 'x'\n"
    loop = f"        for node in unit.layers():\n            {body}\n"
    plugin = written(tmp_path, f"{START}{loop}\n{note}")
    line = 1 + plugin.read_text(encoding="utf-8").splitlines().index(f"            {body}")
    found = command(
        "compile", model, "-o", tmp_path / "out", "--plugin", plugin,
        "--passes", "mine,rtn-lower,pack",
    )  # fmt: skip
    assert found.returncode == 2
    assert what in found.stderr
    assert f"this is a bug of the plugin my_pass.py, line {line}" in found.stderr
