"""Run jobs in processes of their own; keep what is done, say what failed."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.common.processes import ROOT, environment, failure

from .jobs import Job, Work
from .result import Result, read

SHOWN = 4
"""Running jobs that the progress bar names."""


_children: set["subprocess.Popen[str]"] = set()


@dataclass
class Outcome:
    """What a run did."""

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    """Last lines of each job that failed, by its path."""


def result_path(out: Path, work: Work) -> Path:
    """Where the result of a work lies."""
    return out / f"{work.digest}.json"


def finished(out: Path, jobs: Iterable[Job]) -> dict[str, Result]:
    """Results that are there, by the path of their job."""
    found = {job.path: read(result_path(out, job.work)) for job in jobs if job.work is not None}
    return {path: result for path, result in found.items() if result is not None}


def pending(out: Path, jobs: Iterable[Job]) -> list[Job]:
    """Jobs to run, each digest once."""
    first: dict[str, Job] = {}
    for job in jobs:
        if job.work is not None and read(result_path(out, job.work)) is None:
            first.setdefault(job.work.digest, job)
    return list(first.values())


def run_all(jobs: Sequence[Job], out: Path, processes: int, threads: int) -> Outcome:
    """Run jobs, ``processes`` at a time with ``threads`` each.

    Jobs that ask for a number of threads are timed: they come last, one at a time.
    """
    outcome = Outcome()
    shared = [job for job in jobs if job.threads is None]
    alone = [job for job in jobs if job.threads is not None]
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=len(jobs))
        running: list[str] = []

        def work(job: Job) -> Result:
            running.append(job.path)
            bar.update(task, description=", ".join(running[:SHOWN]))
            try:
                return run_job(job, out, job.threads or threads)
            finally:
                running.remove(job.path)

        for group, workers in ((shared, processes), (alone, 1)):
            pool = ThreadPoolExecutor(max(1, workers))
            try:
                futures = {pool.submit(work, job): job for job in group}
                for future in as_completed(futures):
                    _note(outcome, futures[future], future, bar.console)
                    bar.advance(task)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                stop_children()
                raise
            finally:
                pool.shutdown()
    return outcome


def run_job(job: Job, out: Path, threads: int) -> Result:
    """Run one job in its own process and read its result.

    Raises:
        RuntimeError: the process failed; its last lines are the message.
    """
    assert job.work is not None
    target = result_path(out, job.work)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "work.json"
        source.write_text(job.work.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", "bench.quality.worker", str(source), str(target.resolve())]
        status, errors = call(command, threads)
    result = read(target)
    if status or result is None:
        raise RuntimeError(failure(status, errors))
    return result


def call(command: Sequence[str], threads: int) -> tuple[int, str]:
    """Run a command in the root folder; return its exit status and what it wrote to stderr.

    It leads a process group, so that ``stop_children`` also reaches what it starts itself.
    """
    child = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment(threads),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    _children.add(child)
    try:
        _, errors = child.communicate()
    finally:
        _children.discard(child)
    return child.returncode, errors


def stop_children() -> None:
    """End every process that is running, with all that it started."""
    for child in tuple(_children):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)


def _note(outcome: Outcome, job: Job, future: Future[Result], console: Console) -> None:
    error = future.exception()
    if error is not None:
        outcome.failed[job.path] = str(error)
        last = str(error).splitlines()[-1]
        console.print(f"failed  {job.path}: {last}", style="red", markup=False, soft_wrap=True)
        return
    outcome.done += 1
    cost = future.result().cost
    times = f"{cost.seconds:.1f} s, {cost.processor_seconds:.1f} processor seconds"
    console.print(f"done    {job.path}   {times}", markup=False, soft_wrap=True)
