"""Data on stdout, progress on stderr and only on a terminal, a closed pipe is no error."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qdc.cli import run
from tests.cli.conftest import Command, check_refusal
from tests.support.commands import environment


def popen(*arguments: object, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "qdc", *map(str, arguments)],
        stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr,
        env={**environment(), "TERM": "xterm"},
    )  # fmt: skip


def drain(terminal: int) -> bytes:
    """Everything written to a terminal until its last writer closes it."""
    found = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:
            return found
        if not part:
            return found
        found += part


def test_progress_is_drawn_on_a_terminal(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QDC_PROGRESS", "on")
    terminal, child = pty.openpty()
    process = popen(
        "compile", model, "-o", tmp_path / "out", "--passes", "rtn-lower,pack", "--json",
        stdout=subprocess.PIPE, stderr=child,
    )  # fmt: skip
    os.close(child)
    drawn = drain(terminal)
    os.close(terminal)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert b"read the checkpoint" in drawn
    assert b"pack blocks.1" in drawn  # the pass, and what it works on
    assert out.startswith(b"{\n")
    assert out.endswith(b"}\n")


@pytest.mark.parametrize(
    "command", ["show", pytest.param("show --json", marks=pytest.mark.slow), "verify"]
)
def test_a_closed_pipe_is_no_error(command: str, artifact: Path) -> None:
    """Whether texts, tables or data are written: ``qdc verify out | head -1`` is no bug."""
    name, *options = command.split()
    process = popen(name, artifact, *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=120) == 0


def test_a_terminated_compile_leaves_only_what_can_be_gone_on_from(tmp_path: Path) -> None:
    """SIGTERM in the middle: what no journal speaks of is removed on the way out."""
    model = Path(__file__).parents[2] / "examples" / "tiny-llada"
    process = popen(
        "compile",
        model,
        "-o",
        tmp_path / "out",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert any(tmp_path.iterdir())
    process.terminate()
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    partial = tmp_path / ".out.partial"
    assert list(tmp_path.iterdir()) in ([], [partial])
    if partial.exists():
        names = {path.name for path in partial.iterdir()}
        assert names == {"journal.json", "kept", "artifact", "lock"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "command", ["show", pytest.param("passes", marks=pytest.mark.slow), "help"]
)
def test_a_full_disk_is_no_bug(command: str, artifact: Path) -> None:
    arguments = {"show": ("show", artifact), "passes": ("passes",), "help": ("--help",)}[command]
    with Path("/dev/full").open("wb") as full:
        process = popen(*arguments, stdout=full.fileno(), stderr=subprocess.PIPE)
        _, error = process.communicate(timeout=120)
    text = error.decode()
    check_refusal(process.returncode, "", text)
    assert text == "error[QDC002] cannot read or write: no space left on device\n"


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EIO", "EROFS"])
def test_a_bad_disk_is_no_bug_of_whoever_meets_it(
    name: str, model: Path, refused: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(errno, name)

    def fail(*_: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("qdc.cli.show.render", fail)
    assert os.strerror(number).lower() in refused("show", model)


def test_another_error_of_the_system_is_a_bug(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **options: object) -> None:
        raise OSError(errno.EBADF, "no such descriptor")

    monkeypatch.setattr("qdc.cli.show.render", fail)
    assert run(["show", str(model)]) == 2
    assert "error[QDC900]" in capsys.readouterr().err
