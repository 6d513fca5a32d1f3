"""End commands at every call that changes the disk: is anything ever lost?

    python -m bench.commits
    python -m bench.commits --trials 20 --only 'export --force'

A random tiny checkpoint is compiled and exported, anew and over something that is there, and an
interrupted compile is resumed. Each command is counted once: its calls of rename, unlink, mkdir,
open for writing, fsync and the like. Then it is ended by SIGKILL, SIGTERM and SIGINT, before and
after each of these calls, on a file system where folders can change places in one step, and where
they cannot. SIGKILL after a call is SIGKILL before the next one, and is sent once. Every time the
artifact at OUT must be the old one or the new one, byte for byte; a signal that can be handled must
lead to its exit code, without a traceback. Then the same command runs once more and must end well,
with the new artifact and its report in place and nothing else.

Only where folders cannot change places, SIGKILL between two renames may leave OUT empty: the next
command brings back what was there. Exits with 1 if anything was lost.
"""

import argparse
import contextlib
import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.common.calls import Ended, Moment, run_until, without_exchange
from bench.common.checkpoint import build
from bench.common.forks import prepare_for_forks
from qdc.artifact.commit import REPLACED, artifact_digest
from qdc.artifact.partial import partial_folder
from qdc.cli import run
from qdc.errors import QdcError
from qdc.report.files import read_report

RTN, OTHER = "rtn-lower,pack", "rtn-lower{bits=4},pack"
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
Contents = dict[str, bytes]


@dataclass(frozen=True)
class Case:
    """One command, and what is there when it starts."""

    name: str
    command: tuple[str, ...]
    again: tuple[str, ...]
    """The command that a user types after an end."""
    before: Path
    """A folder that is copied; the command works in the copy."""
    reports: bool
    exchanges: bool = True


def contents(folder: Path) -> Contents | None:
    """The files of a folder; None if it is not there."""
    if not folder.is_dir():
        return None
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Trials:
    """All ends of one command."""

    def __init__(self, case: Case, folder: Path) -> None:
        """``folder`` is empty, and ours."""
        self.case, self.folder = case, folder
        self.place, self.log = folder / "place", folder / "log"
        self.out = self.place / "out"
        self.old = contents(case.before / "out")
        self._lay_out()
        whole = self._run(case.command, Moment(0))
        if whole.code:
            sys.exit(f"{case.name} does not work: {whole.errors}")
        self.calls, self.new = whole.calls, contents(self.out)
        self.left = self._names()

    def _lay_out(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.case.before, self.place)

    def _names(self) -> list[str]:
        return sorted(path.name for path in self.place.iterdir())

    def _run(self, command: Sequence[str], moment: Moment) -> Ended:
        def work() -> int:
            if not self.case.exchanges:
                without_exchange()
            os.chdir(self.place)
            return run(list(command))

        return run_until(moment, work, self.log)

    def moments(self, most: int | None, seed: int) -> list[Moment]:
        """Every call with every signal, or so many of these moments, drawn by the seed."""
        found = [
            Moment(call, kind, after)
            for call in range(1, self.calls + 1)
            for after in (False, True)
            for kind in SIGNALS
            if kind != signal.SIGKILL or not after or call == self.calls
        ]
        if most is None or most >= len(found):
            return found
        return sorted(random.Random(seed).sample(found, most), key=lambda moment: moment.call)

    def fault(self, moment: Moment) -> str:
        """End the command, run it again; what is wrong, or nothing."""
        self._lay_out()
        ended = self._run(self.case.command, moment)
        found = self._wrong_after(moment, ended)
        if found:
            return found
        again = self._run(self.case.again, Moment(0))
        if again.code:
            return f"the next command ends with {again.code}: {again.errors}"
        if contents(self.out) != self.new:
            return "the next command does not make the artifact"
        if self._names() != self.left:
            return f"left behind: {self._names()}"
        return self._wrong_report()

    def _wrong_after(self, moment: Moment, ended: Ended) -> str:
        there = contents(self.out)
        killed = moment.number == signal.SIGKILL
        if killed and ended.code != -signal.SIGKILL:
            return f"was not killed, but ended with {ended.code}"
        if not killed and ended.code != 128 + moment.number and (ended.code or there != self.new):
            return f"ended with {ended.code}: {ended.errors}"
        if "Traceback" in ended.errors:
            return ended.errors
        aside = partial_folder(self.out) / f"artifact.{REPLACED}"
        if there is None and killed and not self.case.exchanges:
            there = contents(aside)
        return "" if there in (self.old, self.new) else "the artifact is lost"

    def _wrong_report(self) -> str:
        if not self.case.reports:
            return ""
        try:
            report = read_report(self.out)
        except QdcError as error:
            return str(error)
        return "" if report.artifact_sha256 == artifact_digest(self.out) else "another report"


def lay_out(folder: Path, model: Path) -> Iterator[Case]:
    """Make what commands start from, and yield them."""
    compile_ = ("compile", str(model), "-o", "out", "--passes", RTN)
    empty, old, begun, exported = (folder / n for n in ("empty", "old", "begun", "exported"))
    for place in (empty, old, begun, exported):
        place.mkdir()
    source = str(folder / "artifact")

    def must(at: Path, *arguments: str) -> Callable[[], int]:
        def work() -> int:
            os.chdir(at)
            return run(list(arguments))

        return work

    def make(at: Path, *arguments: str, call: int = 0) -> Ended:
        return run_until(Moment(call), must(at, *arguments), folder / "log")

    # In this process, which then has all that Python loads late: a fork need not load it again.
    with contextlib.redirect_stdout(io.StringIO()):
        must(old, "compile", str(model), "-o", "out", "--passes", OTHER)()
        must(folder, "compile", str(model), "-o", source, "--passes", RTN, "--no-report")()
        must(exported, "export", source, "-o", "out", "--dtype", "f16")()
    total = make(empty, *compile_).calls
    shutil.rmtree(empty)
    empty.mkdir()
    make(begun, *compile_, call=total * 2 // 3)
    if not (begun / ".out.partial" / "journal.json").is_file():
        sys.exit("a compile that is killed late has no journal")
    export = ("export", source, "-o", "out")
    for exchanges in (True, False):
        end = "" if exchanges else ", two renames"
        for name, command, again, before, reports in (
            ("compile", compile_, (*compile_, "--resume"), empty, True),
            ("compile --force", (*compile_, "--force"), (*compile_, "--force", "--resume"), old,
             True),
            ("compile --force --no-report", (*compile_, "--force", "--no-report"),
             (*compile_, "--force", "--no-report", "--resume"), old, False),
            ("resume", (*compile_, "--resume"), (*compile_, "--resume"), begun, True),
            ("export", export, (*export, "--force"), empty, False),
            ("export --force", (*export, "--force"), (*export, "--force"), exported, False),
        ):  # fmt: skip
            if exchanges or before in (old, exported):
                yield Case(name + end, command, again, before, reports, exchanges)


def main() -> None:
    """Run all trials and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, help="of each command; else all there are")
    parser.add_argument("--seed", type=int, default=0, help="which are drawn")
    parser.add_argument("--only", help="one case, by its name")
    options = parser.parse_args()
    prepare_for_forks()
    right, ran = True, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = build(folder / "model", regions=2, width=32, hidden=48, vocabulary=512)
        print(f"{'command':<42}{'calls':>6}{'kills':>7}{'SIGTERM':>9}{'SIGINT':>8}{'lost':>6}")
        for case in lay_out(folder, model):
            if options.only not in (None, case.name):
                continue
            ran += 1
            place = folder / "trials"
            place.mkdir()
            trials, counts, lost = Trials(case, place), Counter[int](), 0
            for moment in trials.moments(options.trials, options.seed):
                counts[moment.number] += 1
                fault = trials.fault(moment)
                if fault:
                    lost += 1
                    print(f"{case.name}: {moment}: {fault}", file=sys.stderr, flush=True)
            numbers = "".join(
                f"{counts[kind]:>{width}}" for kind, width in zip(SIGNALS, (7, 9, 8), strict=True)
            )
            print(f"{case.name:<42}{trials.calls:>6}{numbers}{lost:>6}", flush=True)
            right = right and not lost
            shutil.rmtree(place)
    if not ran:
        sys.exit(f"no command is called {options.only}")
    sys.exit(not right)


if __name__ == "__main__":
    main()
