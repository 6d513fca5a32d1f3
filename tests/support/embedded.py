"""The embedded model, compiled by ``default`` once for a whole run of the tests."""

import fcntl
import os
import shlex
from pathlib import Path

import pytest
import torch

from qdc.cli import run
from tests.support.checkpoints import EMBEDDED

SAMPLES = 16
"""Those of ``--effort low``."""
LINE = "qdc compile examples/tiny-llada -o out --effort low"
"""How README.md and docs/tutorial.md compile it; run from the root of the repository."""


def embedded_artifact(factory: pytest.TempPathFactory) -> Path:
    """The artifact that every process of the run shares; whoever asks first compiles it.

    It takes twenty seconds: tests read it, and copy it before they change anything. Its report lies
    beside it. One thread computes it, so that its bytes are the same in every run.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    out = root / "embedded"
    with (root / "embedded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            places = {"examples/tiny-llada": str(EMBEDDED), "out": str(out)}
            before = torch.get_num_threads()
            torch.set_num_threads(1)
            assert run([places.get(word, word) for word in shlex.split(LINE)[1:]]) == 0
            torch.set_num_threads(before)
    return out
