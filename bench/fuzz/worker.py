"""One process that damages and reads, under a limit on memory; its parent holds the clock.

A case is over when its line comes out of the pipe. If it does not come in time, the process is
killed and another goes on with the next case: a hang or a crash costs one case.
"""

import json
import os
import resource
import select
import shutil
import signal
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from bench.common.processes import peak_bytes, reset_peak

from .kinds import KINDS, NATIVES
from .readers import READERS
from .sources import Sources

SECONDS = 20.0
"""Longest time of a case: every reader together."""
MEMORY = 1 << 30
"""Most address space beyond what the process has before its first case."""
REFUSED, TAKEN, FAILED = "refused", "taken", "failed"


class Case(NamedTuple):
    """One mutation; its name and the seed decide every byte of it."""

    kind: str
    number: int


class Outcome(NamedTuple):
    """What became of a case."""

    case: Case
    verdict: str
    seconds: float = 0.0
    memory: int = 0
    """Growth of the resident set at its highest, in bytes."""
    detail: str = ""


def run_cases(
    sources: Sources, cases: Sequence[Case], seed: int, scratch: Path
) -> Iterator[Outcome]:
    """Run all cases in forked processes, in order."""
    left = list(cases)
    while left:
        process, pipe = _start(sources, left, seed, scratch)
        for outcome in _outcomes(process, pipe, left):
            left.pop(0)
            yield outcome


def _start(sources: Sources, cases: Sequence[Case], seed: int, scratch: Path) -> tuple[int, int]:
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        try:
            _work(sources, cases, seed, scratch, write)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(9)
    os.close(write)
    return child, read


def _outcomes(process: int, pipe: int, cases: Sequence[Case]) -> Iterator[Outcome]:
    """Give one outcome after the other until the process has ended or was killed."""
    waiting, data = list(cases), b""
    while waiting:
        ready, _, _ = select.select([pipe], [], [], SECONDS)
        if not ready:
            os.kill(process, signal.SIGKILL)
            yield Outcome(waiting[0], FAILED, SECONDS, detail=f"no end after {SECONDS:.0f} s")
            break
        piece = os.read(pipe, 1 << 16)
        if not piece:
            break
        data += piece
        *lines, data = data.split(b"\n")
        for line in lines:
            verdict, seconds, memory, detail = json.loads(line)
            yield Outcome(waiting.pop(0), verdict, seconds, memory, detail)
    os.close(pipe)
    _, status = os.waitpid(process, 0)
    if (
        waiting
        and status
        and not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL)
    ):
        yield Outcome(waiting[0], FAILED, detail=f"the process ended with status {status}")


def _work(sources: Sources, cases: Sequence[Case], seed: int, scratch: Path, pipe: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for case in cases:
        line = json.dumps(_one(sources, case, seed, scratch))
        os.write(pipe, line.encode() + b"\n")


def _one(sources: Sources, case: Case, seed: int, scratch: Path) -> tuple[str, float, int, str]:
    chance = Random(f"{seed} {case.kind} {case.number}")
    kind = {**KINDS, **NATIVES}[case.kind]
    source = chance.choice(kind.sources)
    folder = scratch / "damaged"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(sources[source], folder)
    kind.damage(folder, chance)
    return read_all(folder, kind.readers)


def read_all(folder: Path, readers: Sequence[str]) -> tuple[str, float, int, str]:
    """Let these readers read a folder, one after the other.

    Returns:
        The verdict of the first reader, or that one has failed; the seconds; the growth of the
        resident set at its highest; and how it failed.
    """
    reset_peak()
    before, begun, taken, detail = peak_bytes(), time.monotonic(), [], ""
    for name in readers:
        try:
            taken.append(READERS[name](folder))
        except BaseException as error:
            trace = traceback.format_exc(limit=-4)
            detail = f"{name}: {type(error).__name__}\n{trace[-3000:]}"
            break
    verdict = FAILED if detail else TAKEN if taken[0] else REFUSED
    return verdict, time.monotonic() - begun, max(0, peak_bytes() - before), detail
