"""What a process holds beside what passes hold: libraries, and memory that was freed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from qdc.planning.process import KEPT, MOST_KEPT, compile_process_bytes, with_kept
from qdc.streaming.ledger import Peak
from qdc.streaming.memory import resident_bytes
from tests.support.checkpoints import EMBEDDED


def test_what_is_freed_is_counted_up_to_what_the_allocator_keeps() -> None:
    few = with_kept(Peak(nbytes=110, moment="now", parts={"process": 100, "states": 10}), 100)
    assert few.parts == {"process": 100, "states": 10, KEPT: 20}
    assert (few.nbytes, few.moment) == (130, "now")
    many = with_kept(Peak(nbytes=100 + 4 * MOST_KEPT), 100)
    assert many.nbytes == 100 + 5 * MOST_KEPT
    nothing = Peak(nbytes=100)
    assert with_kept(nothing, 100) is nothing


def test_what_computing_takes_is_there_once_it_was_asked_for() -> None:
    first = compile_process_bytes()
    assert first <= resident_bytes() * 1.01
    assert compile_process_bytes() == pytest.approx(first, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("passes", ["default", "gptq"])
def test_a_compile_of_the_embedded_model_stays_within_its_plan(passes: str, tmp_path: Path) -> None:
    sizes = ("--passes", passes, "--samples", "16", "--length", "256")
    planned = ran("plan", EMBEDDED, *sizes, "--json")["host"]["nbytes"]
    out = ("-o", tmp_path / "out", "--no-report", "--json")
    measured = max(row["peak_bytes"] for row in ran("compile", EMBEDDED, *sizes, *out)["passes"])
    assert measured < planned < 1.3 * measured


def ran(*words: object) -> Any:
    """What a command prints, in a process of its own."""
    command = [sys.executable, "-m", "qdc", *map(str, words)]
    return json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
