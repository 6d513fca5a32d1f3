"""Processes of a comparison: nothing starts once it is ended."""

import sys
import threading
from pathlib import Path

import pytest

from qdc.comparing.runner import call


def test_nothing_starts_after_the_end(tmp_path: Path) -> None:
    ended, mark = threading.Event(), tmp_path / "mark"
    command = [sys.executable, "-c", f"open({str(mark)!r}, 'w')"]
    assert call(command, 1, ended=ended) == (0, "")
    mark.unlink()
    ended.set()
    with pytest.raises(RuntimeError, match="was not started"):
        call(command, 1, ended=ended)
    assert not mark.exists()
