"""Folders for what is not kept, one a process: two comparisons may share a folder of results."""

import contextlib
import os
import shutil
from pathlib import Path

FOLDER = "scratch"


def scratch_folder(out: Path) -> Path:
    """That of this process, beside the results; it need not be there."""
    return out / FOLDER / str(os.getpid())


def clear(out: Path) -> None:
    """Remove that of this process, and those of processes that have ended without doing so."""
    folder = out / FOLDER
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name == str(os.getpid()) or not _is_running(path.name):
            shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):  # another process is using it
        folder.rmdir()


def _is_running(name: str) -> bool:
    """Whether a process of this number is there; what is no number is none of ours."""
    if not name.isdecimal():
        return True
    try:
        os.kill(int(name), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
