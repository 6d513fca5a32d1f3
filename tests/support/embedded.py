"""The embedded model, compiled by ``default`` once for a whole run of the tests."""

import fcntl
import os
from pathlib import Path

import pytest

import qdc
from tests.support.checkpoints import EMBEDDED

SAMPLES = 24


def embedded_artifact(factory: pytest.TempPathFactory) -> Path:
    """The artifact that every process of the run shares; whoever asks first compiles it.

    It takes twenty seconds: tests read it, and copy it before they change anything.
    """
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    out = root / "embedded"
    with (root / "embedded.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            report = qdc.compile(EMBEDDED, out=out, samples=SAMPLES)
            assert report.sign_bits == 2
    return out
