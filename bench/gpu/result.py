"""Everything that one run found, and how it compares with the targets."""

import statistics
from collections.abc import Iterator
from typing import NamedTuple

from pydantic import BaseModel

from .card import Card
from .linears import BASELINE, PACKED, Row
from .region import Compile
from .step import Models

DRY = "dry run: not a measurement"
SPEEDUPS = (("M <= 16", 1, 16, 3.0), ("M = 64", 64, 64, 2.0), ("M >= 1024", 1024, 1 << 30, 0.92))
"""Name, smallest and largest number of rows, and how many times bf16 the packed linear must be."""
MEMORY, COMPILE = 0.32, 60.0
"""Share of the bf16 model's memory at the most, and seconds of the compile of a region."""


class Result(BaseModel):
    """What one run of the benchmark has measured, and where."""

    date: str
    command: str
    card: Card
    seconds: float = 0.0
    """Of the whole run."""
    unfinished: list[str] = []
    """Parts that the budget did not suffice for, or that failed."""
    tuned: dict[str, str] = {}
    rows: list[Row] = []
    models: Models | None = None
    compile: Compile | None = None


class Target(NamedTuple):
    """What was asked for and what was found."""

    name: str
    wanted: str
    found: str
    met: bool | None
    """None if it was not measured."""


def targets(result: Result) -> Iterator[Target]:
    """Every target of the backend. A dry run meets and misses none."""
    for name, least, most, factor in SPEEDUPS:
        # Vocabulary in 8 bits is half of bf16, and is reported beside the targets.
        fitting = [row for row in result.rows if row.codec == "multi-binary"]
        rows = [row for row in fitting if least <= row.tokens <= most]
        found = [row.speedup for row in rows if row.speedup is not None]
        text = "not measured"
        if found:
            text = f"{min(found):.2f} x at the least, median {statistics.median(found):.2f} x"
        done = bool(found) and len(found) == len(rows)
        yield _target(
            result, f"{name}, every 2-bit shape", f"at least {factor} x bf16", text,
            min(found) >= factor if done else None,
        )  # fmt: skip
    memory = result.models.weight_bytes if result.models is not None else {}
    both = {BASELINE, PACKED} <= set(memory)
    share = memory[PACKED] / memory[BASELINE] if both else 0.0
    yield _target(
        result, "memory of the whole model", f"at most {MEMORY} of bf16",
        f"{share:.3f}" if both else "not measured", share <= MEMORY if both else None,
    )  # fmt: skip
    seconds = result.compile.seconds if result.compile is not None else None
    failed = result.compile.failed if result.compile is not None else ""
    yield _target(
        result, "compile of one region", f"under {COMPILE:.0f} s",
        failed or ("not measured" if seconds is None else f"{seconds:.1f} s"),
        False if failed else None if seconds is None else seconds < COMPILE,
    )  # fmt: skip
    off = [row.deviation for row in result.rows if row.deviation is not None]
    yield _target(
        result, "every timed kernel against the formula", "within what rounding explains",
        f"{max(off):.2f} of it at the most" if off else "not measured",
        max(off) <= 1 if off else None,
    )  # fmt: skip


def _target(result: Result, name: str, wanted: str, found: str, met: bool | None) -> Target:
    if not result.card.measured:
        return Target(name, wanted, DRY, None)
    return Target(name, wanted, found, met)
