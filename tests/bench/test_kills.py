"""The bench that kills compiles, run for real: ten SIGKILLs of a cheap pipeline."""

from tests.support.commands import python


def test_killed_compiles_are_resumed_to_the_same_bytes() -> None:
    found = python("-m", "bench.kills", "--kills", 10, "--pipelines", "rtn")
    assert found.returncode == 0, found.stdout + found.stderr
    rows = [line.split() for line in found.stdout.splitlines()[1:]]
    assert sum(int(row[-2]) for row in rows) == 10
    assert [row[-1] for row in rows] == [row[-2] for row in rows]
