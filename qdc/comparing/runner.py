"""Run jobs in processes of their own; keep what is done, say what failed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from qdc.comparing.result import Result, read
from qdc.comparing.scratch import clear
from qdc.comparing.work import Work
from qdc.comparing.worker import MARK
from qdc.errors import printable
from qdc.stopping import undisturbed
from qdc.units import StepProgress

LAST = 12
"""Lines of what a failed process wrote that its error holds."""
GRACE = 5.0
"""Seconds that a process may take to end when it is told to."""
WORKER = "qdc.comparing.worker"

_children: set["subprocess.Popen[bytes]"] = set()
_starting = threading.Lock()
"""Held while a process is started and noted, so that an end comes before all of it or after."""


@dataclass(frozen=True)
class Job:
    """One case with one seed; ``work`` is None where it cannot be run, and ``missing`` says why."""

    path: str
    """Its name among all jobs."""
    work: Work | None
    missing: str = ""
    alone: int | None = None
    """Threads of a job that is timed: it runs when nothing else does."""
    module: str = WORKER
    """Whose ``main`` does the work."""


class Listener:
    """Told what happens, from several threads; this one says nothing."""

    def started(self, job: Job) -> None:
        """A process was started."""

    def stepped(self, job: Job, what: str, done: int, total: int) -> None:
        """It does something, and has done so much of it."""

    def done(self, job: Job, result: Result) -> None:
        """Its result is there."""

    def failed(self, job: Job, error: str) -> None:
        """It has failed; the error may have several lines."""


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


def run_all(
    jobs: Sequence[Job],
    out: Path,
    processes: int,
    threads: int,
    listener: Listener | None = None,
) -> Outcome:
    """Run jobs, ``processes`` at a time with ``threads`` each.

    Jobs that run alone come last, one at a time. Whatever ends this call ends the processes.
    """
    outcome, told = Outcome(), listener or Listener()
    shared = [job for job in jobs if job.alone is None]
    alone = [job for job in jobs if job.alone is not None]

    ended = threading.Event()

    def work(job: Job) -> Result:
        told.started(job)
        return run_job(job, out, job.alone or threads, told, ended)

    try:
        for group, workers in ((shared, processes), (alone, 1)):
            pool = ThreadPoolExecutor(max(1, workers))
            try:
                futures = {pool.submit(work, job): job for job in group}
                for future in as_completed(futures):
                    _note(outcome, futures[future], future, told)
            except BaseException:
                with undisturbed():
                    with _starting:
                        ended.set()
                    pool.shutdown(wait=False, cancel_futures=True)
                    stop_children()
                raise
            finally:
                pool.shutdown()
    finally:
        clear(out)
    return outcome


def run_job(
    job: Job, out: Path, threads: int, told: Listener, ended: threading.Event | None = None
) -> Result:
    """Run one job in its own process and read its result.

    Raises:
        RuntimeError: the process failed; its last lines are the message. Or all had ended.
    """
    assert job.work is not None
    target = result_path(out, job.work)
    job.work.scratch.mkdir(parents=True, exist_ok=True)

    def step(what: str, done: int, total: int) -> None:
        told.stepped(job, what, done, total)

    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "work.json"
        source.write_text(job.work.model_dump_json(), encoding="utf-8")
        command = [sys.executable, "-m", job.module, str(source), str(target.resolve())]
        status, errors = call(command, threads, step, ended)
    result = read(target)
    if status or result is None:
        raise RuntimeError(failure(status, errors))
    return result


def call(
    command: Sequence[str],
    threads: int,
    step: StepProgress = lambda what, done, total: None,
    ended: threading.Event | None = None,
) -> tuple[int, str]:
    """Run a command; return its exit status and what it wrote to stderr.

    It leads a process group, so that ``stop_children`` also reaches what it starts itself, and its
    stdin ends with this process, however that ends.

    Args:
        command: the program and its arguments.
        threads: of the process.
        step: told what lines on stdout say that begin with the mark of the worker.
        ended: once it is set nothing is started.

    Raises:
        RuntimeError: it was not started, as ``ended`` was set.
    """
    with tempfile.TemporaryFile() as errors:
        with _starting:
            if ended is not None and ended.is_set():
                raise RuntimeError("it was not started: the run was ended")
            child = subprocess.Popen(
                command,
                env=environment(threads),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
            _children.add(child)
        try:
            assert child.stdout is not None
            for line in child.stdout:
                _tell(line.decode("utf-8", "replace"), step)
            child.wait()
        finally:
            _children.discard(child)
            for end in (child.stdin, child.stdout):
                if end is not None:
                    end.close()
        errors.seek(0)
        return child.returncode, errors.read().decode("utf-8", "replace")


def _tell(line: str, step: StepProgress) -> None:
    if not line.startswith(MARK):
        return
    with contextlib.suppress(ValueError):
        what, done, total = json.loads(line.removeprefix(MARK))
        step(what, done, total)


def environment(threads: int) -> Mapping[str, str]:
    """Variables for a process that finds what this one finds, and has so many threads."""
    search = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    return {
        **os.environ, "PYTHONPATH": search, "PYTHONUTF8": "1", "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip


def failure(status: int, errors: str) -> str:
    """Why a process failed: the last lines of what it wrote to stderr, or its exit status."""
    lines = printable(errors.strip()).splitlines()
    said = next((n for n, line in enumerate(lines) if line.startswith("error[QDC")), None)
    if status == 1 and said is not None:
        return "\n".join(lines[said:])
    by_signal = f"killed by {signal.Signals(-status).name}" if status < 0 else ""
    return "\n".join([by_signal or f"exit status {status}", *lines[-LAST:]])


def stop_children() -> None:
    """End every process that is running, with all that it started."""
    running = tuple(_children)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for child in running:
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                if child.poll() is None:
                    os.killpg(child.pid, number)
                    child.wait(GRACE)


def _note(outcome: Outcome, job: Job, future: Future[Result], told: Listener) -> None:
    error = future.exception()
    if error is None:
        outcome.done += 1
        told.done(job, future.result())
        return
    if not isinstance(error, RuntimeError | OSError):
        raise error
    outcome.failed[job.path] = str(error)
    told.failed(job, str(error))
