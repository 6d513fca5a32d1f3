"""What benchmarks of jobs do when they are called: say what there is, and run what is not done."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from qdc.comparing.display import display
from qdc.comparing.runner import Job, finished, pending, run_all

from .jobs import C, CaseJob


def run_pending(wanted: Sequence[Job], out: Path, processes: int, threads: int) -> dict[str, str]:
    """Run what is not done; last lines of each job that failed, by its path."""
    out.mkdir(parents=True, exist_ok=True)
    # Ended politely, the run takes its processes with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    todo = pending(out, wanted)
    with display(len(todo), processes) as shown:
        outcome = run_all(todo, out, processes, threads, shown)
    for path, error in outcome.failed.items():
        print(f"\n{path}: {error}", file=sys.stderr)
    print(f"{outcome.done} done, {len(outcome.failed)} failed", file=sys.stderr)
    return outcome.failed


def print_jobs(jobs: Sequence[CaseJob[C]], out: Path) -> None:
    """Print what each job is, and whether it is done."""
    done = finished(out, jobs)
    table = Table("job", "state", "what", box=None, pad_edge=False)
    states = {
        job.path: "missing" if job.work is None else "done" if job.path in done else "to do"
        for job in jobs
    }
    for job in jobs:
        what = job.missing or job.case.pipeline or f"{job.case.peer} {job.case.options}"
        table.add_row(job.path, states[job.path], what)
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(table)
    counts = {state: list(states.values()).count(state) for state in ("done", "to do", "missing")}
    console.print(", ".join(f"{count} {state}" for state, count in counts.items()))


def seeds(text: str) -> tuple[int, ...]:
    """Read ``0,1,2``. Raises ``ArgumentTypeError``."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, need numbers as 0,1,2") from None
