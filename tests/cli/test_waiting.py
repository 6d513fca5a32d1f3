"""Threads that wait for each other sleep: it is said before torch is loaded, and only once."""

import subprocess
import sys

import pytest

from tests.support.commands import environment

TELL = (
    "import os, sys; from qdc import cli\n"
    "def run(arguments):\n"
    "    print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))\n"
    "    return 0\n"
    "cli.run = run; cli.main()"
)


@pytest.mark.parametrize(
    ("given", "policy"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active"), ({"GOMP_SPINCOUNT": "9"}, "None")],
)
def test_command_line_says_how_threads_wait(given: dict[str, str], policy: str) -> None:
    inherited = {k: v for k, v in environment().items() if k not in ("OMP_WAIT_POLICY", *given)}
    found = subprocess.run(
        [sys.executable, "-c", TELL],
        capture_output=True, text=True, check=False, env={**inherited, **given},
    )  # fmt: skip
    assert found.stdout.split() == ["False", policy], found.stderr
