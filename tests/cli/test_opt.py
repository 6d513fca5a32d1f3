"""``qdc opt`` and ``qdc show --full``: text in, text out."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from qdc.ir.dump import read, to_bytes
from qdc.ir.parser import parse
from qdc.pipeline.registry import standard_registry
from tests.cli.conftest import Command, Ended
from tests.conftest import TESTS

TEXT = TESTS / "golden" / "opt" / "abmp-allocate.in.txt"
ABMP = ("--passes", "abmp-allocate{ratio=0.25}")
PLUGIN = '''
"""Give every block of a layer one order."""
from typing import ClassVar
from qdc.ir.annotations import Orders, Salience
from qdc.pipeline.passbase import Pass

class Even(Pass):
    """Give every block one order."""
    name: ClassVar[str] = "even"
    requires: ClassVar = (Salience,)
    provides: ClassVar = (Orders,)
    order: int = 3

    def run(self, unit):
        for node in unit.layers():
            widths = unit.graph.require(node.name, Salience).widths
            unit.annotate(node, Orders(blocks=(self.order,) * len(widths), widths=widths))
'''


Stdin = Callable[[bytes], None]


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Stdin:
    def put(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))

    return put


def test_text_in_text_out(qdc: Command) -> None:
    text = qdc("opt", TEXT, *ABMP)
    assert "      @orders    2 1 3 2   mean 2\n" in text
    assert "in full" not in text
    assert "  after stages(calibrate-mcs,sensitivity),abmp-allocate{ratio=0.25}\n" in text
    full = qdc("opt", TEXT, *ABMP, "--full")
    expected = TEXT.with_name("abmp-allocate.out.txt").read_text(encoding="utf-8")
    assert expected.startswith(full)


def test_all_kinds_of_input_give_the_same(
    artifact: Path, tmp_path: Path, qdc: Command, stdin: Stdin
) -> None:
    binary, text = artifact / "ir.qdc", tmp_path / "ir.txt"
    text.write_text(qdc("show", artifact, "--full"), encoding="utf-8")
    expected = qdc("opt", artifact, *ABMP)
    assert qdc("opt", binary, *ABMP) == expected
    assert qdc("opt", text, *ABMP) == expected
    for path in (binary, text):
        stdin(path.read_bytes())
        assert qdc("opt", "-", *ABMP) == expected


def test_show_reads_texts(artifact: Path, tmp_path: Path, qdc: Command, refused: Command) -> None:
    full, short = qdc("show", artifact, "--full"), qdc("show", artifact)
    tags = standard_registry().annotations()
    assert to_bytes(parse(full, tags)) == (artifact / "ir.qdc").read_bytes()
    for number, text in enumerate((full, short)):
        path = tmp_path / f"{number}.txt"
        path.write_text(text, encoding="utf-8")
        assert qdc("show", path) == short
    assert qdc("show", tmp_path / "0.txt", "--full") == full
    message = refused("show", tmp_path / "1.txt", "--full")
    assert "the text leaves facts out" in message
    assert "qdc show --full" in message
    assert "leave one of them out" in refused("show", artifact, "--full", "--json")


def test_a_model_in_full_can_be_read_back(model: Path, tmp_path: Path, qdc: Command) -> None:
    path = tmp_path / "model.txt"
    path.write_text(qdc("show", model, "--full"), encoding="utf-8")
    assert qdc("show", path) == qdc("show", model)


@pytest.mark.parametrize("name", ["after.qdc", "after.txt"])
def test_the_result_is_written(name: str, tmp_path: Path, qdc: Command) -> None:
    path = tmp_path / name
    assert qdc("opt", TEXT, *ABMP, "-o", path) == f"wrote {path}\n"
    assert qdc("show", path) == qdc("opt", TEXT, *ABMP)
    tags = standard_registry().annotations()
    given = parse(qdc("opt", TEXT, *ABMP, "--full"), tags)
    assert (read(path, tags) if name.endswith("qdc") else parse(path.read_text(), tags)) == given


OTHERS: dict[str, Callable[[Path], object]] = {
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "device": lambda path: path.symlink_to("/dev/null"),
    "loop": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_nothing_but_a_file_is_replaced(kind: str, tmp_path: Path, refused: Command) -> None:
    """Whoever may write to a folder of devices would replace one by a text."""
    path = tmp_path / "x"
    OTHERS[kind](path)
    before = path.lstat()
    assert f"cannot write to {path}: " in refused("opt", TEXT, *ABMP, "-o", path)
    after = path.lstat()
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["", ".", "/", "..", "/proc/x", "none/x.qdc"])
def test_places_that_take_no_file_are_refused(name: str, refused: Command) -> None:
    assert "cannot write to " in refused("opt", TEXT, *ABMP, "-o", name)


def test_a_file_that_has_the_name_of_the_new_one_stays(tmp_path: Path, qdc: Command) -> None:
    (tmp_path / "x.txt.new").write_text("mine", encoding="utf-8")
    qdc("opt", TEXT, *ABMP, "-o", tmp_path / "x.txt")
    assert (tmp_path / "x.txt.new").read_text(encoding="utf-8") == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.txt", "x.txt.new"]


def test_what_would_be_ignored_is_refused(tmp_path: Path, refused: Command) -> None:
    assert "--json has every fact" in refused("opt", TEXT, *ABMP, "--full", "--json")
    out = tmp_path / "x"
    assert "leave --full out" in refused("opt", TEXT, *ABMP, "--full", "-o", out)
    assert "goes to stdout" in refused("opt", TEXT, *ABMP, "-o", "-")
    assert not out.exists()


@pytest.mark.parametrize("before", [b"\xef\xbb\xbf", b"\n \r\n", b"\n# what it is\n"])
def test_a_text_need_not_begin_at_once(before: bytes, tmp_path: Path, qdc: Command) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(before + TEXT.read_bytes())
    assert qdc("opt", path, *ABMP) == qdc("opt", TEXT, *ABMP)


def test_data(tmp_path: Path, qdc: Command) -> None:
    data = json.loads(qdc("opt", TEXT, *ABMP, "--json"))
    assert data["nodes"][2]["annotations"]["orders"]["blocks"] == [2, 1, 3, 2]
    assert data["remarks"][0] == "passed abmp-allocate %h0.q raised=1 lowered=1"


def test_remarks_go_to_stderr(command: Ended) -> None:
    found = command("opt", TEXT, *ABMP, "--remarks")
    assert found.returncode == 0
    assert found.stdout.startswith("graph @toy")
    assert found.stderr.splitlines() == [
        "passed abmp-allocate %h0.q raised=1 lowered=1",
        "passed abmp-allocate %h0.k raised=1 lowered=1",
        "missed abmp-allocate %h0.o reason=too few blocks blocks=3",
    ]


def test_plugins_run(tmp_path: Path, qdc: Command, refused: Command) -> None:
    plugin = tmp_path / "even.py"
    plugin.write_text(PLUGIN, encoding="utf-8")
    text = qdc("opt", TEXT, "--passes", "stages(even)", "--plugin", plugin)
    assert "      @orders    3 3 3 3   mean 3\n" in text
    assert "no pass or preset is called 'even'" in refused("opt", TEXT, "--passes", "even")


def test_passes_that_need_more_are_refused(artifact: Path, refused: Command) -> None:
    message = refused("opt", artifact, "--passes", "rtn-lower")
    assert message.startswith("error[QDC205] rtn-lower asks for the weight model.transformer.")
    message = refused("opt", artifact, "--passes", "default")
    assert message.startswith("error[QDC205] calibrate-cross runs the model on calibration text")
    assert "help  run it by qdc compile" in message


def test_input_that_is_none_is_refused(
    model: Path,
    tmp_path: Path,
    refused: Command,
    stdin: Stdin,
) -> None:
    assert "no such file or folder" in refused("opt", tmp_path / "none", *ABMP)
    assert "qdc show MODEL --full" in refused("opt", model, *ABMP)
    path = tmp_path / "bad.txt"
    path.write_bytes(TEXT.read_bytes().replace(b"= linear", b"= ", 1))
    message = refused("opt", path, *ABMP)
    assert message.startswith("error[QDC204] the text of the IR does not parse")
    assert f"at    {path}, line 11, column" in message
    assert "^" in message
    path.write_bytes(b"graph @\xff")
    assert "not UTF-8" in refused("opt", path, *ABMP)
    stdin(b"")
    assert "no qdc IR dump" in refused("opt", "-", *ABMP)


def test_a_text_that_leaves_facts_out_makes_nothing_whole(
    tmp_path: Path, qdc: Command, refused: Command
) -> None:
    path = tmp_path / "short.txt"
    path.write_text(qdc("show", TEXT), encoding="utf-8")
    for option in (("--full",), ("-o", tmp_path / "x.qdc")):
        assert "the text leaves facts out" in refused("opt", path, *ABMP, *option)
    assert not (tmp_path / "x.qdc").exists()
    assert "of which the text shows a summary" in refused("opt", path, *ABMP)
