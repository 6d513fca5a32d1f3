"""The bench that damages files, run for real: each kind a few times, memory and time bounded."""

import pytest

from tests.support.commands import python


@pytest.mark.slow
def test_damaged_files_are_read_or_refused() -> None:
    found = python("-m", "bench.fuzz", "--cases", 220)
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.stdout.splitlines()]
    total = next(row for row in rows if row and row[0] == "all")
    cases, refused, taken, failed = map(int, total[1:5])
    assert cases == refused + taken + failed >= 220
    assert failed == 0
    assert min(refused, taken) > 10


def test_a_failure_is_told_and_costs_one_case() -> None:
    """With no time at all, every case is late: it is named, and the next one is still run."""
    found = python("-c", LATE)
    assert found.returncode == 1
    assert found.stderr.count("no end after") == 2
    assert "Case(kind='journal bytes', number=1)" in found.stderr
    assert "| journal bytes | 2 | 0 | 0 | 2 |" in found.stdout


LATE = """
import sys, time
from bench.fuzz import __main__, kinds, readers, worker

sys.argv = ["fuzz", "--cases", "2", "--only", "journal bytes"]
worker.SECONDS = 0.2
first = readers.READERS["journal"]
calls = []

def slow(folder):
    calls.append(folder)
    return first(folder) if len(calls) == 1 else time.sleep(60)

readers.READERS["journal"] = slow
sys.exit(__main__.main())
"""
