"""Kill compiles and resume them: is the artifact always that of an uninterrupted one?

    python -m bench.kills --kills 30

A random tiny checkpoint of three regions is compiled by `default` and by `best`. A compile in a
process of its own is ended by SIGKILL as soon as its journal has N entries, for every N, and at
random times; then another process resumes it, and every byte of the artifact is compared. One more
is killed after each of its steps, every process the heir of the one before.
Processes are forked from this one after its imports, so that a kill costs no start of Python;
`--how command` starts `python -m qdc compile` instead. Exits with 1 if any artifact differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import qdc
from bench.common.checkpoint import build
from bench.common.forks import prepare_for_forks
from bench.common.processes import environment

PIPELINES = {
    "rtn": "quantize-vocab,stages(calibrate-mcs,rtn-lower),pack",
    "default": "default",
    "best": "quantize-vocab,calibrate-mcs,sensitivity{block=256},measure-orders{scale-bits=8},"
    "probe-loss{block=256},allocate{scope=model weights=loss},"
    "stages(calibrate-cross,sensitivity{damp=0.1 block=256},daq-lower{scale-bits=8 asymmetry=1}),"
    "polish{iterations=8 check-every=4},pack",
}
"""``best`` with few steps of polish, whose number changes nothing here."""
SAMPLES, LENGTH, WAIT = 6, 16, 120.0
Contents = dict[str, bytes]


class Compile:
    """One compile of a checkpoint, started as often as needed, each time in a new process."""

    def __init__(self, model: Path, folder: Path, passes: str, how: str) -> None:
        """``how`` is ``fork`` or ``command``."""
        self.model, self.passes, self.how = model, passes, how
        self.out = folder / "out"
        self.journal = folder / ".out.partial" / "journal.json"

    def start(self, *, resume: bool) -> int:
        """Start a process and return its id."""
        if self.how == "fork":
            return self._fork(resume)
        arguments = [
            sys.executable, "-m", "qdc", "compile", self.model, "-o", self.out, "--no-report",
            "--passes", self.passes, "--samples", SAMPLES, "--length", LENGTH,
        ]  # fmt: skip
        arguments += ["--resume"] if resume else []
        command = list(map(str, arguments))
        return subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL).pid

    def _fork(self, resume: bool) -> int:
        child = os.fork()
        if child:
            return child
        try:
            options: dict[str, Any] = {"samples": SAMPLES, "length": LENGTH, "write_report": False}
            qdc.compile(self.model, self.passes, out=self.out, resume=resume, **options)
            os._exit(0)
        except BaseException as error:
            print(error, *getattr(error, "__notes__", ()), file=sys.stderr, flush=True)
            os._exit(1)

    def finish(self, *, resume: bool) -> Contents:
        """Run to the end; return the artifact's files."""
        _, status = os.waitpid(self.start(resume=resume), 0)
        if status:
            sys.exit(f"a compile ended with status {status}")
        return self.contents()

    def contents(self) -> Contents:
        """The artifact's files."""
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}

    def has(self, entries: int) -> Callable[[], bool]:
        """Whether the journal has so many entries."""
        return lambda: self.entries() >= entries

    @staticmethod
    def is_past(seconds: float) -> Callable[[], bool]:
        """Whether so much time has gone by."""
        end = time.monotonic() + seconds
        return lambda: time.monotonic() > end

    def kill(self, when: Callable[[], bool], *, resume: bool) -> bool:
        """Start, and end it by SIGKILL when ``when`` says so; False if it ended before."""
        child, deadline = self.start(resume=resume), time.monotonic() + WAIT
        while not when():
            if os.waitpid(child, os.WNOHANG)[0]:
                return False
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
                sys.exit("a compile does not come to where it should be killed")
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])

    def entries(self) -> int:
        """Steps that the journal says are done."""
        try:
            return len(json.loads(self.journal.read_bytes())["entries"])
        except (OSError, ValueError):
            return 0

    def clear(self) -> None:
        """Remove the artifact, and what an interrupted compile of it has left."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.journal.parent, ignore_errors=True)


def at_boundaries(compile_: Compile, expected: Contents) -> tuple[int, int]:
    """Kill after each step, each time a compile from its start; kills and equal artifacts."""
    killed = equal = 0
    while compile_.kill(compile_.has(killed + 1), resume=False):
        killed += 1
        equal += compile_.finish(resume=True) == expected
        compile_.clear()
    compile_.clear()
    return killed, equal


def at_random(
    compile_: Compile, expected: Contents, kills: int, within: float, seed: int
) -> tuple[int, int]:
    """Kill at random times within so many seconds; kills and equal artifacts."""
    chance, killed, equal = random.Random(seed), 0, 0
    while killed < kills:
        if compile_.kill(compile_.is_past(chance.uniform(0, within)), resume=False):
            killed += 1
            equal += compile_.finish(resume=True) == expected
        compile_.clear()
    return killed, equal


def in_a_row(compile_: Compile, expected: Contents) -> tuple[int, int]:
    """Kill one compile after each of its steps; kills, and as many if the artifact is equal."""
    killed = 0
    while compile_.kill(compile_.has(compile_.entries() + 1), resume=killed > 0):
        killed += 1
    equal = compile_.contents() == expected
    compile_.clear()
    return killed, killed * equal


def measure(compile_: Compile, kills: int, seed: int) -> Iterator[tuple[str, int, int]]:
    """Yield what was killed, how often, and how many artifacts were equal."""
    begun = time.monotonic()
    expected = compile_.finish(resume=False)
    within = time.monotonic() - begun
    compile_.clear()
    killed, equal = at_boundaries(compile_, expected)
    yield f"after each of {killed} steps", killed, equal
    chained = in_a_row(compile_, expected)
    yield "one compile, in a row", *chained
    left = max(0, kills - killed - chained[0])
    yield f"at random within {within:.1f} s", *at_random(compile_, expected, left, within, seed)


def main() -> None:
    """Run both pipelines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="of each pipeline, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--how", choices=["fork", "command"], default="fork")
    parser.add_argument("--pipelines", default="default,best")
    options = parser.parse_args()
    prepare_for_forks()
    right = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(folder / "model", regions=3, width=32, hidden=48, vocabulary=2048)
        if options.how == "fork":  # what Python loads late, children then have
            qdc.compile(model, "rtn", out=folder / "warm", samples=SAMPLES, length=LENGTH)
        print(f"{'pipeline':<10}{'killed':<34}{'kills':>7}{'equal':>7}")
        for pipeline in options.pipelines.split(","):
            compile_ = Compile(model, folder, PIPELINES[pipeline], options.how)
            for what, killed, equal in measure(compile_, options.kills, options.seed):
                print(f"{pipeline:<10}{what:<34}{killed:>7}{equal:>7}", flush=True)
                right = right and killed == equal
    sys.exit(not right)


if __name__ == "__main__":
    main()
