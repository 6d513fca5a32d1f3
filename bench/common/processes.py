"""Start processes of the repository, wait for their answers, and see how much memory they take."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]
EMBEDDED = ROOT / "examples" / "tiny-llada"
"""The embedded model."""
LAST = 12
"""Lines of what a failed process wrote that its error holds."""


class Failed(Exception):
    """A process ended with another status than 0; the message is what it said last."""


def environment(threads: int | None = None, *, inherit: bool = True) -> dict[str, str]:
    """Variables for a process that imports this repository.

    Args:
        threads: of the process; None leaves what this process was told.
        inherit: keep this process's import path behind the repository. Another interpreter must
            not find packages that belong to this one.
    """
    search = [str(ROOT), *([os.environ.get("PYTHONPATH", "")] if inherit else [])]
    found = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, search)), "PYTHONUTF8": "1"}
    return found if threads is None else {**found, "OMP_NUM_THREADS": str(threads)}


def answer(
    command: Sequence[object], variables: dict[str, str], timeout: float | None = None
) -> str:
    """Run a command in the root folder to its end and return what it wrote to stdout.

    Args:
        command: the program and its arguments, each made to text.
        variables: of its environment, see ``environment``.
        timeout: seconds after which it is killed.

    Raises:
        Failed: its exit status is not 0.
        subprocess.TimeoutExpired: it did not end in time.
    """
    done = subprocess.run(
        list(map(str, command)),
        cwd=ROOT,
        env=variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        timeout=timeout,
    )
    if done.returncode:
        raise Failed(failure(done.returncode, done.stderr))
    return done.stdout


def failure(status: int, errors: str) -> str:
    """The exit status and the last lines of what a failed process wrote to stderr."""
    return "\n".join([f"exit status {status}", *errors.strip().splitlines()[-LAST:]])


def peak_bytes(process: int | str = "self") -> int:
    """Highest resident memory of a process since its start or its last reset; Linux only."""
    lines = Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def reset_peak() -> None:
    """From now on ``peak_bytes`` of this process counts from what is resident at present."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
