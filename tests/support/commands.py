"""Run the real command in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(*paths: Path) -> dict[str, str]:
    """One thread, no colours, and these folders before the repository on the import path."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "FORCE_COLOR")}
    search = os.pathsep.join(map(str, (*paths, ROOT)))
    return {**inherited, "PYTHONPATH": search, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}


def python(*arguments: object, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL,
        env=environment(*paths), timeout=300,
    )  # fmt: skip


def qdc(*arguments: object, paths: tuple[Path, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run ``qdc``."""
    return python("-m", "qdc", *arguments, paths=paths)
