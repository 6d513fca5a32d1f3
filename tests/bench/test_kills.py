"""The benches that kill compiles, run for real: ten SIGKILLs, and five ends of an export."""

import pytest

from tests.support.commands import python


@pytest.mark.slow
def test_killed_compiles_are_resumed_to_the_same_bytes() -> None:
    found = python("-m", "bench.kills", "--kills", 10, "--pipelines", "rtn")
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert sum(int(row[-2]) for row in rows) == 10
    assert [row[-1] for row in rows] == [row[-2] for row in rows]


@pytest.mark.slow
def test_a_killed_rank_and_all_others_go_on_to_the_same_bytes() -> None:
    arguments = ("--kills", 5, "--processes", 2, "--pipelines", "rtn")
    found = python("-m", "bench.kills", *arguments)
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert sum(int(row[-2]) for row in rows) >= 5
    assert [row[-1] for row in rows] == [row[-2] for row in rows]


@pytest.mark.slow
def test_commands_that_end_at_a_call_lose_nothing() -> None:
    found = python("-m", "bench.commits", "--trials", 5, "--only", "export --force, two renames")
    assert found.returncode == 0, found.stdout + found.stderr
    [_, row] = found.stdout.splitlines()
    *_, kills, terms, ints, lost = map(int, row.split()[-5:])
    assert (kills + terms + ints, lost) == (5, 0)
