"""What commands cost here and in another checkout, in turns, and where the time goes.

    git worktree add --detach ../before a1e7e53
    python -m bench.speed --before ../before --rounds 3
    python -m bench.speed --before ../before --only eval eval-two generate
    python -m bench.speed --parts

Processor seconds of one thread, of processes of their own: ``qdc compile`` of the embedded model,
whole; the calibration alone of a region of LLaDA-8B's width (random weights); ``qdc eval`` of what
was compiled against its original, and of two artifacts at once; ``qdc generate`` from it with each
cache. Reading commands are run twice in a process and the second one counts: it loads the models,
but neither imports nor compiles kernels. Commands of both checkouts take turns; given are the
median of the rounds, the least and the most. The artifact that both read is this checkout's. With
``--parts``, instead, where the time of both compiles goes, by ``cProfile``: it makes what is
written in Python look dearer than it is.
"""

import argparse
import json
import os
import pstats
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.common.checkpoint import build
from bench.common.markdown import header, row, table
from bench.common.processes import EMBEDDED, ROOT, Failed, failure

WORKER = Path(__file__).parent / "worker.py"
CALIBRATION = "stages(calibrate-cross,rtn-lower),pack"
PROMPT = "def read_lines(path):\n    "
KINDS = ("compile", "eval", "eval-two", "generate")
CACHES = ("none", "prefix", "dual")
PARTS = {
    "imports": ("_find_and_load",),
    "forward, both streams": ("streaming/execute.py:run",),
    "moments": (
        "numerics/moment.py:add",
        "numerics/asymmetry.py:add",
        "numerics/asymmetry.py:add_residual",
    ),
    "factors": ("numerics/factor.py:factorize",),
    "what drift takes back": ("numerics/asymmetry.py:drifted_target",),
    "first fits": ("numerics/multibinary.py:fit",),
    "feedback and refits": ("numerics/columns.py:quantize_block",),
    "output errors": ("numerics/error.py:block_errors",),
    "packing": ("passes/pack.py:run",),
}
"""Functions that none of the others calls, by the ends of their names."""


class Cost(NamedTuple):
    """What one command took."""

    processor: float
    """Seconds of the whole process, imports included."""
    last: Sequence[dict[str, Any]]
    """Of each command the last time: ``processor`` seconds, and what it ``said`` on stdout."""


def run(checkout: Path, *command: object, profile: Path | None = None, times: int = 1) -> Cost:
    """Run a command of a checkout on one thread. Raises ``Failed``."""
    search = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH", "")]))
    variables = {**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen(
            [sys.executable, str(WORKER), str(profile or "-"), str(times), *map(str, command)],
            cwd=checkout, env=variables, stdin=subprocess.DEVNULL, stdout=said, stderr=errors,
        )  # fmt: skip
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        for file in (said, errors):
            file.seek(0)
        if child.returncode:
            raise Failed(failure(child.returncode, errors.read()))
        return Cost(used.ru_utime + used.ru_stime, json.loads(said.read()))


class Commands:
    """The commands that are measured, and where they write."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.artifact = options.artifact or folder / "artifact"
        self.region = folder / "region"
        self.answers: dict[str, dict[Path, Sequence[float]]] = {}

    def whole(self, checkout: Path, profile: Path | None = None) -> float:
        """Compile the embedded model by ``default``: processor seconds."""
        out = self.artifact if checkout == ROOT else self.folder / "other"
        return run(
            checkout, "compile", EMBEDDED, "-o", out, "--force", "--device", "cpu",
            "--samples", self.options.samples, profile=profile,
        ).processor  # fmt: skip

    def calibration(self, checkout: Path) -> float:
        """Calibrate a wide region: processor seconds of that pass."""
        self.wide(checkout, CALIBRATION, None)
        report = json.loads((self.folder / "wide-report" / "report.json").read_text("utf-8"))
        rows: list[dict[str, Any]] = report["passes"]
        seconds = (each["seconds"] for each in rows if each["name"] == "calibrate-cross")
        return float(sum(seconds))

    def wide(self, checkout: Path, pipeline: str, profile: Path | None) -> float:
        """Compile a region of LLaDA-8B's width: processor seconds."""
        if not self.region.exists():
            width, hidden = self.options.width
            build(self.region, regions=1, width=width, hidden=hidden, vocabulary=2048)
        return run(
            checkout, "compile", self.region, "-o", self.folder / "wide", "--force",
            "--device", "cpu", "--passes", pipeline, "--samples", 4, "--length", 256,
            profile=profile,
        ).processor  # fmt: skip

    def evaluation(self, checkout: Path, artifacts: int) -> float:
        """Seconds of the processor, loading included."""
        second = self.folder / "second"
        if not second.exists():
            shutil.copytree(self.artifact, second)
        cost = run(
            checkout, "eval", *(self.artifact, second)[:artifacts], "--against", EMBEDDED,
            "--text", EMBEDDED / "heldout.jsonl", "--windows", self.options.windows,
            "--seeds", 1, "--device", "cpu", "--json", times=2,
        )  # fmt: skip
        [last] = cost.last
        found = json.loads(last["said"])
        results = [found] if artifacts == 1 else [each["result"] for each in found["models"]]
        every = [loss for result in results for loss in losses(result)]
        self._note(checkout, f"losses of {artifacts}", every)
        return float(last["processor"])

    def generation(self, checkout: Path) -> list[float]:
        """Tokens written in a second of the processor with each cache, loading left out."""
        length, block = self.options.length, self.options.block
        asked: list[object] = []
        for cache in CACHES:
            asked += [] if not asked else ["--"]
            asked += ["generate", self.artifact, PROMPT, "--length", length, "--block", block]
            asked += ["--cache", cache, "--device", "cpu", "--json"]
        found = [json.loads(each["said"]) for each in run(checkout, *asked, times=2).last]
        for cache, answer in zip(CACHES, found, strict=True):
            self._note(checkout, f"tokens with cache {cache}", answer["tokens"])
        return [float(answer["tokens_per_second"]) for answer in found]

    def _note(self, checkout: Path, what: str, answer: Sequence[float]) -> None:
        """Keep what was answered, to say how far both checkouts answer alike."""
        self.answers.setdefault(what, {})[checkout] = answer


def turns(commands: Commands, before: Path, rounds: int) -> Iterator[tuple[object, ...]]:
    """Measure every command in both checkouts, in turns, and yield the rows of a table."""
    for names, measure in measures(commands):
        found: dict[Path, list[Sequence[float]]] = {before: [], ROOT: []}
        for _ in range(rounds):
            for checkout, values in found.items():
                values.append(measure(checkout))
        for place, name in enumerate(names):
            both = [[value[place] for value in values] for values in found.values()]
            first, second = map(statistics.median, both)
            yield name, *map(spread, both), f"{second / first:.2f}"


def spread(values: Sequence[float]) -> str:
    """The median, the least and the most."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} .. {max(values):.1f})"


def losses(result: dict[str, Any]) -> Iterator[float]:
    """Losses and divergences of a comparison."""
    for side in ("candidate", "original"):
        yield from (row["loss"] for row in result[side]["ratios"])
        yield result[side]["bound"]
    yield from (row["divergence"] for row in result["agreements"])


def measures(
    commands: Commands,
) -> Iterator[tuple[Sequence[str], Callable[[Path], Sequence[float]]]]:
    """What is measured, and how: a command may give several figures."""
    only = commands.options.only
    if "compile" in only:
        yield ["compile of the embedded model, s"], lambda at: [commands.whole(at)]
        yield ["calibration of a wide region, s"], lambda at: [commands.calibration(at)]
    if "eval" in only:
        yield ["`qdc eval` of an artifact, s"], lambda at: [commands.evaluation(at, 1)]
    if "eval-two" in only:
        yield ["`qdc eval` of two artifacts, s"], lambda at: [commands.evaluation(at, 2)]
    if "generate" in only:
        names = [f"`qdc generate --cache {cache}`, tokens/s" for cache in CACHES]
        yield names, commands.generation


def shares(profile: Path) -> dict[str, float]:
    """The share of each part in all processor time of a profile; the last one is the rest."""
    stats = pstats.Stats(str(profile))
    spent: dict[str, float] = {}
    for (file, _, function), figures in stats.stats.items():  # type: ignore[attr-defined]
        place = f"{file}:{function}".replace(os.sep, "/")
        for part, ends in PARTS.items():
            if any(place.endswith((f"/{end}", f":{end}")) for end in ends):
                spent[part] = spent.get(part, 0) + figures[3]
    whole = stats.total_tt  # type: ignore[attr-defined]
    found = {part: spent.get(part, 0) / whole for part in PARTS}
    return {**found, "the rest": 1 - sum(found.values())}


def parts(commands: Commands) -> Iterator[tuple[object, ...]]:
    """Profile both compiles here and yield the rows of a table."""
    small, wide = commands.folder / "small.prof", commands.folder / "wide.prof"
    commands.whole(ROOT, small)
    commands.wide(ROOT, "default", wide)
    pairs = zip(shares(small).items(), shares(wide).values(), strict=True)
    for (part, one), other in pairs:
        yield part, f"{one:.1%}", f"{other:.1%}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--before", type=Path, help="another checkout of this repository")
    kind.add_argument("--parts", action="store_true", help="where the time goes in this one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=128, help="of the embedded model")
    parser.add_argument("--width", type=int, nargs=2, default=(4096, 12288))
    parser.add_argument("--windows", type=int, default=32, help="that qdc eval reads")
    parser.add_argument("--length", type=int, default=64, help="tokens that qdc generate writes")
    parser.add_argument("--artifact", type=Path, help="of the embedded model, if there is one")
    parser.add_argument("--block", type=int, default=32, help="tokens of its blocks")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        commands = Commands(Path(name), options)
        if options.parts:
            print(table(("part", "embedded model", "wide region"), parts(commands)))
            return
        if options.artifact is None:
            commands.whole(ROOT)  # what the others read
        print(header(("what", "before", "after", "after / before")))
        for cells in turns(commands, options.before.resolve(), options.rounds):
            print(row(cells), flush=True)
        for what, answers in commands.answers.items():
            pairs = list(zip(*answers.values(), strict=True))
            others = sum(first != second for first, second in pairs)
            furthest = max(abs(first - second) for first, second in pairs)
            print(f"{what}: {others} of {len(pairs)} differ, by {furthest:.2g} at most")


if __name__ == "__main__":
    main()
