from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from qdc.cli import run
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.threads import one_thread

__all__ = ["one_thread"]

Command = Callable[..., str]
Ended = Callable[..., CompletedProcess[str]]


@pytest.fixture(autouse=True)
def standard_width(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the shell that runs the tests says."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint with ragged blocks."""
    return write_checkpoint(tmp_path_factory.mktemp("cli") / "model", max_length=64)


@pytest.fixture(scope="session")
def artifact(model: Path) -> Path:
    """The model, compiled by the default pipeline."""
    compile_tiny(model, model.with_name("artifact"))
    return model.with_name("artifact")


@pytest.fixture(scope="session")
def text(model: Path) -> Path:
    """Held-out text of many short windows."""
    path = model.with_name("text.jsonl")
    path.write_text('{"text": "for i in range(10): print(i)\\\\n"}\n' * 3, encoding="utf-8")
    return path


@pytest.fixture
def qdc(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command in this process; it must succeed and leave stderr empty. Gives its stdout."""

    def call(*arguments: object) -> str:
        code = run([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        assert (code, error) == (0, "")
        return out

    return call


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Ended:
    """Run a command in this process, however it ends."""

    def call(*arguments: object) -> CompletedProcess[str]:
        words = [str(argument) for argument in arguments]
        code = run(words)
        return CompletedProcess(words, code, *capsys.readouterr())

    return call


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run a command that must fail with one message, exit code 1 and nothing on stdout."""

    def call(*arguments: object) -> str:
        code = run([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        check_refusal(code, out, error)
        return error

    return call


def check_refusal(code: int, out: str, error: str) -> None:
    """One message, in its parts, and no traceback."""
    assert code == 1, error
    assert out == ""
    lines = error.splitlines()
    assert lines[0].startswith("error[QDC")
    assert error.count("error[QDC") == 1
    assert "Traceback" not in error
    assert all(line.startswith("  ") for line in lines[1:])
    what = lines[0].partition("] ")[2]
    assert not what.endswith((".", "!"))
    assert what[0] == what[0].lower() or not what[0].isalpha()
