"""Kill compiles and resume them: is the artifact always that of an uninterrupted one?

    python -m bench.kills --kills 30
    python -m bench.kills --kills 15 --processes 2 4 --pipelines default
    python -m bench.kills --kills 40 --pipelines small,two --model examples/tiny-llada

A random tiny checkpoint of three regions, or `--model`, is compiled by `default` and by `best`, or
by `--pipelines`: names of this table, else presets of qdc. A compile in a
process of its own is ended by SIGKILL as soon as its journal has N entries, for every N, and at
random times; then another process resumes it, and every byte of the artifact is compared. One more
is killed after each of its steps, every process the heir of the one before.
Of several processes one is killed, chosen by `--seed`, and all are started again.
Processes are forked from this one after its imports, so that a kill costs no start of Python, and
several are told what torchrun tells them; `--how command` starts `python -m qdc compile` instead,
several by torchrun. Exits with 1 if any artifact differs.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
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
from qdc.distributed.failure import FailedElsewhere, LostRank
from qdc.distributed.launch import leave

PIPELINES = {
    "rtn": "quantize-vocab,stages(calibrate-mcs,rtn-lower),pack",
    "default": "default",
    "best": "best",
    "best-signs": "best-signs",
    "probed": "quantize-vocab,calibrate-mcs,sensitivity{block=256},measure-orders{scale-bits=8},"
    "probe-loss{block=256},allocate{scope=model weights=loss},"
    "stages(calibrate-cross,sensitivity{damp=0.1 block=256},daq-lower{scale-bits=8 asymmetry=1}),"
    "polish{iterations=8 check-every=4},pack",
}
"""``probed`` has few steps of polish, whose number changes nothing here."""
SAMPLES, LENGTH, WAIT = 6, 16, 120.0
Contents = dict[str, bytes]


class Compile:
    """One compile of a checkpoint, started as often as needed, each time in new processes."""

    def __init__(
        self, model: Path, folder: Path, passes: str, how: str, processes: int = 1, seed: int = 0
    ) -> None:
        """``how`` is ``fork`` or ``command``; ``seed`` chooses which processes are killed."""
        self.model, self.passes, self.how, self.processes = model, passes, how, processes
        self.out = folder / "out"
        self.journal = folder / ".out.partial" / "journal.json"
        self.chance = random.Random(seed)

    def start(self, *, resume: bool) -> list[int]:
        """Start processes and return the ids of those that this one has to wait for."""
        if self.how == "fork":
            port = free_port()
            return [self._fork(resume, rank, port) for rank in range(self.processes)]
        several = self.processes > 1
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
        arguments = [
            sys.executable, *([*launcher, self.processes] if several else []),
            "-m", "qdc", "compile", self.model, "-o", self.out, "--no-report",
            "--passes", self.passes, "--samples", SAMPLES, "--length", LENGTH,
        ]  # fmt: skip
        arguments += ["--resume"] if resume else []
        command = list(map(str, arguments))
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL if several else None}
        return [subprocess.Popen(command, env=environment(1), **quiet).pid]  # type: ignore[call-overload]

    def _fork(self, resume: bool, rank: int, port: int) -> int:
        child = os.fork()
        if child:
            return child
        try:
            if self.processes > 1:  # what torchrun says to each of its processes
                told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes}
                told |= {"LOCAL_WORLD_SIZE": self.processes, "MASTER_PORT": port}
                os.environ.update({name: str(value) for name, value in told.items()})
                os.environ["MASTER_ADDR"] = "127.0.0.1"
            options: dict[str, Any] = {"samples": SAMPLES, "length": LENGTH, "write_report": False}
            qdc.compile(self.model, self.passes, out=self.out, resume=resume, **options)
            leave()
            os._exit(0)
        except BaseException as error:
            if not isinstance(error, FailedElsewhere | LostRank):
                print(error, *getattr(error, "__notes__", ()), file=sys.stderr, flush=True)
            os._exit(1)

    def finish(self, *, resume: bool) -> Contents:
        """Run to the end; return the artifact's files."""
        statuses = [os.waitpid(each, 0)[1] for each in self.start(resume=resume)]
        if any(statuses):
            sys.exit(f"a compile ended with status {max(statuses)}")
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
        """Start, and end one process by SIGKILL when ``when`` says so; False if it ended before.

        The others notice, or torchrun ends them.
        """
        started, deadline = self.start(resume=resume), time.monotonic() + WAIT
        while not when():
            ended = [each for each in started if os.waitpid(each, os.WNOHANG)[0]]
            if ended:
                for each in set(started) - set(ended):
                    os.waitpid(each, 0)
                return False
            if time.monotonic() > deadline:
                for each in started:
                    os.kill(each, signal.SIGKILL)
                sys.exit("a compile does not come to where it should be killed")
            time.sleep(0.001)
        victims = started
        if self.how == "command" and self.processes > 1:
            victims = children(started[0]) or started
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.chance.choice(victims), signal.SIGKILL)
        ended = [self._ended(each, deadline) for each in started]  # all are waited for
        return any(ended)

    @staticmethod
    def _ended(process: int, deadline: float) -> bool:
        """Wait for a process; whether it did not end well."""
        while time.monotonic() < deadline:
            found, status = os.waitpid(process, os.WNOHANG)
            if found:
                return status != 0
            time.sleep(0.01)
        os.kill(process, signal.SIGKILL)
        sys.exit("a process does not notice that another was killed")

    def entries(self) -> int:
        """Steps that the journal says are done."""
        try:
            return len(json.loads(self.journal.read_bytes())["entries"])
        except (OSError, ValueError):
            return 0

    def clear(self) -> None:
        """Remove the artifact, and what an interrupted compile of it has left."""
        shutil.rmtree(self.out, ignore_errors=True)
        for folder in self.out.parent.glob(".out.partial*"):
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def children(process: int) -> list[int]:
    """Processes that another has started; Linux only."""
    path = Path(f"/proc/{process}/task/{process}/children")
    return [int(text) for text in path.read_text().split()] if path.exists() else []


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
    parser.add_argument("--processes", type=int, nargs="+", default=[1], help="of each compile")
    parser.add_argument("--pipelines", default="default,best")
    parser.add_argument("--model", type=Path, help="a checkpoint folder [default: a random one]")
    options = parser.parse_args()
    prepare_for_forks()
    right = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = options.model or build(
            folder / "model", regions=3, width=32, hidden=48, vocabulary=2048
        )
        if options.how == "fork":  # what Python loads late, children then have
            qdc.compile(model, "rtn", out=folder / "warm", samples=SAMPLES, length=LENGTH)
        print(f"{'pipeline':<10}{'processes':<11}{'killed':<34}{'kills':>7}{'equal':>7}")
        for pipeline in options.pipelines.split(","):
            text = PIPELINES.get(pipeline, pipeline)
            for count in options.processes:
                how, seed = options.how, options.seed
                compile_ = Compile(model, folder, text, how, count, seed)
                for what, killed, equal in measure(compile_, options.kills, seed):
                    row = f"{pipeline:<10}{count:<11}{what:<34}{killed:>7}{equal:>7}"
                    print(row, flush=True)
                    right = right and killed == equal
    sys.exit(not right)


if __name__ == "__main__":
    main()
