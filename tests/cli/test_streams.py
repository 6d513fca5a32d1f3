"""Data on stdout, progress on stderr and only on a terminal, a closed pipe is no error."""

import os
import pty
import subprocess
import sys
from pathlib import Path

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


def test_progress_is_drawn_on_a_terminal(model: Path, tmp_path: Path) -> None:
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
    assert b"run the passes" in drawn
    assert out.startswith(b"{\n")
    assert out.endswith(b"}\n")


def test_a_closed_pipe_is_no_error(artifact: Path) -> None:
    process = popen("show", artifact, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(timeout=120) == 0
