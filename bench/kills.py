"""Kill compiles and resume them: is the artifact always that of an uninterrupted one?

    python bench/kills.py --kills 30

A random tiny checkpoint of three regions is compiled by `default` and by `best`. A compile in a
process of its own is ended by SIGKILL as soon as its journal has N entries, for every N, and at
random times; then another process resumes it, and every byte of the artifact is compared. At last
one compile is killed after each of its steps, and every one of its processes is the last one's heir.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import qdc
from tests.support.checkpoints import write_checkpoint

PIPELINES = {
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
        return subprocess.Popen(list(map(str, arguments)), stdout=subprocess.DEVNULL).pid

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
        return {path.name: path.read_bytes() for path in sorted(self.out.iterdir())}

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
        """Forget everything."""
        shutil.rmtree(self.out, ignore_errors=True)
        shutil.rmtree(self.journal.parent, ignore_errors=True)


def measure(compile_: Compile, kills: int, seed: int) -> tuple[list[tuple[str, int, int]], bool]:
    """Kill at every boundary, at random times, and in a chain; count kills and equal artifacts."""
    begun = time.monotonic()
    expected = compile_.finish(resume=False)
    duration = time.monotonic() - begun
    steps = 0
    compile_.clear()
    rows = []
    good = total = 0
    while compile_.kill(lambda: compile_.entries() > steps, resume=False):
        steps += 1
        total += 1
        good += compile_.finish(resume=True) == expected
        compile_.clear()
    compile_.clear()
    rows.append((f"after each of {steps} steps", total, good))
    chance, good, total = random.Random(seed), 0, 0
    while total < max(0, kills - 2 * steps):
        moment = time.monotonic() + chance.uniform(0, duration)
        if compile_.kill(lambda moment=moment: time.monotonic() > moment, resume=False):
            total += 1
            good += compile_.finish(resume=True) == expected
        compile_.clear()
    rows.append((f"at random times within {duration:.1f} s", total, good))
    total, reached = 0, -1
    while reached < steps and compile_.kill(
        lambda: compile_.entries() > max(0, reached), resume=total > 0
    ):
        total, reached = total + 1, compile_.entries()
    good = total if compile_.finish(resume=True) == expected else 0
    compile_.clear()
    rows.append(("one compile, in a row", total, good))
    return rows, all(killed == equal for _, killed, equal in rows)


def main() -> None:
    """Run both pipelines and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30, help="of each pipeline, at least")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--how", choices=["fork", "command"], default="fork")
    parser.add_argument("--pipelines", default=",".join(PIPELINES))
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork
    right = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_checkpoint(
            folder / "model", d_model=32, mlp_hidden_size=48, n_layers=3, dtype=torch.float32
        )
        if options.how == "fork":  # what Python loads late, children then have
            qdc.compile(model, "rtn", out=folder / "warm", samples=SAMPLES, length=LENGTH)
        print(f"{'pipeline':<10}{'killed':<34}{'kills':>7}{'equal':>7}")
        for pipeline in options.pipelines.split(","):
            compile_ = Compile(model, folder, PIPELINES[pipeline], options.how)
            rows, good = measure(compile_, options.kills, options.seed)
            right = right and good
            for what, killed, equal in rows:
                print(f"{pipeline:<10}{what:<34}{killed:>7}{equal:>7}", flush=True)
    sys.exit(not right)


if __name__ == "__main__":
    main()
