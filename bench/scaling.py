"""How much several processes gain on one wide region, and what they send each other.

    python -m bench.scaling --processes 1 2
    python -m bench.scaling --processes 1 2 4 --experts 64 --width 256 --hidden 128
    python -m bench.scaling --arithmetic

The first two build a random checkpoint of one region, dense or a mixture of experts, and compile it
under torchrun, with one thread a process. For every pass it prints wall seconds, and the critical
path: of each application the CPU seconds of the rank that took longest, added up. The critical path
is what the wall would be on a machine that does nothing else. The last prints what ownership alone
allows for large models.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import torch

from bench.common.checkpoint import build
from bench.common.clocks import Moment, now
from bench.common.mixture import Mixture
from bench.common.processes import answer, environment
from bench.common.shapes import LLADA, Model, stages
from qdc.compiling.compiler import run_job
from qdc.compiling.instruments import Instrument
from qdc.compiling.job import plan_job
from qdc.compiling.options import CompileOptions
from qdc.distributed.launch import joined, leave
from qdc.distributed.ownership import cost, owners
from qdc.distributed.world import World
from qdc.ir.graph import Node
from qdc.ir.types import Parameter, ValueType
from qdc.pipeline.registry import standard_registry
from qdc.planning.forecast import forecast
from qdc.planning.machine import Machine
from qdc.planning.options import ForecastOptions
from qdc.streaming.unit import Unit

VOCABULARY = 2048
PASSES = (
    "stages(calibrate-cross{{batch={batch}}},sensitivity{{damp=0.1}},abmp-allocate,"
    "daq-lower{{asymmetry=1}}),pack"
)
EXPERT, EXPERTS = Model("100B MoE", width=4096, keys=512, hidden=1024, vocabulary=0), 128
ATTENTION, FEED_FORWARD = slice(0, 2), slice(2, 4)
REGIONS = {
    LLADA.name: stages(LLADA),
    EXPERT.name: (
        *stages(EXPERT)[ATTENTION],
        *(stage for stage in stages(EXPERT)[FEED_FORWARD] for _ in range(EXPERTS)),
    ),
}
"""Stages of one region; of the second, 61 regions make 100.6B weights."""


class Clock(Instrument):
    """Wall and CPU seconds of every pass application on this rank."""

    def __init__(self) -> None:
        self.found: list[tuple[str, float, float]] = []
        self._start = Moment(0, 0)

    def before(self, place: int, unit: Unit) -> None:
        """Start the clocks."""
        self._start = now()

    def after(self, place: int, unit: Unit) -> None:
        """Stop the clocks and note what the pass took on this unit."""
        wall, processor = (end - start for end, start in zip(now(), self._start, strict=True))
        self.found.append((unit.step.name, wall, processor))


def work(options: argparse.Namespace) -> None:
    """What each process does: compile, and let the first write what all have measured."""
    with joined("cpu") as world:
        clock = Clock()
        asked = CompileOptions(
            model_dir=options.folder / "model",
            out=options.folder / f"out{world.size}",
            passes=PASSES.format(batch=options.batch),
            samples=options.samples,
            length=options.length,
            write_report=False,
        )
        job = plan_job(asked, standard_registry(), instruments=(clock,))
        report = run_job(job, None, world)
        answers = [msgpack.unpackb(each) for each in world.agree(msgpack.packb(clock.found))]
        transfer = bandwidth(world, options.megabytes)
    if world.first:
        found: dict[str, list[float]] = {}
        for rows in zip(*answers, strict=True):
            row = found.setdefault(rows[0][0], [0.0, 0.0])
            row[0] += rows[0][1]
            row[1] += max(cpu for _, _, cpu in rows)
        facts = {"passes": found, "sent": report.sent_bytes, "seconds": report.seconds}
        text = json.dumps({**facts, "reduce": transfer, "foreseen": foreseen(options, world.size)})
        (options.folder / f"{world.size}.json").write_text(text)
    leave()


def foreseen(options: argparse.Namespace, ranks: int) -> int:
    """Bytes that the plan says so many processes send."""
    asked = ForecastOptions.parse(
        model_dir=options.folder / "model", passes=PASSES.format(batch=options.batch), ranks=ranks,
        samples=options.samples, length=options.length,
    )  # fmt: skip
    machine = Machine.elsewhere("h100").asked(ranks, None)
    return forecast(asked, standard_registry(), machine, text=False).sent_bytes


def bandwidth(world: World, megabytes: int) -> float:
    """Bytes a second of a reduce to the first rank, best of three; 0 for one process."""
    if world.size == 1:
        return 0.0
    tensor, best = torch.zeros(megabytes * 2**17, dtype=torch.float64), float("inf")
    for _ in range(3):
        world.agree()
        start = time.perf_counter()
        world.reduce([tensor], 0)
        best = min(best, time.perf_counter() - start)
    return tensor.nbytes / best


def measure(options: argparse.Namespace) -> None:
    """Run all numbers of processes and print the table."""
    with TemporaryDirectory() as folder:
        options.folder = Path(folder)
        write(options)
        found = {count: started(options, count) for count in options.processes}
    first = found[options.processes[0]]
    print(f"load of the machine  {' '.join(f'{load:.1f}' for load in os.getloadavg())}")
    print("pass             " + "".join(f"{f'{n} wall':>10}{'path':>8}" for n in found))
    for name in first["passes"]:
        cells = (run["passes"][name] for run in found.values())
        print(f"{name:<17}" + "".join(f"{wall:>10.2f}{path:>8.2f}" for wall, path in cells))
    base = first["passes"]["daq-lower"]
    for count, run in found.items():
        wall, path = (
            one / other for one, other in zip(base, run["passes"]["daq-lower"], strict=True)
        )
        print(
            f"{count} processes: lowering {wall:.2f} times as fast by the wall, {path:.2f} by the "
            f"critical path; {run['sent'] / 1e6:.1f} MB sent, {run['foreseen'] / 1e6:.1f} of them "
            f"foreseen; reduce {run['reduce'] / 1e9:.2f} GB/s"
        )


def write(options: argparse.Namespace) -> None:
    """The random checkpoint that is compiled."""
    folder, width, hidden = options.folder / "model", options.width, options.hidden
    if options.experts:
        experts, chosen = options.experts, options.chosen
        Mixture(1, width, hidden, experts, chosen, VOCABULARY).write(folder)
    else:
        build(folder, regions=1, width=width, hidden=hidden, vocabulary=VOCABULARY)


def started(options: argparse.Namespace, count: int) -> dict[str, Any]:
    """What one run has measured."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    command = [sys.executable, *(launcher if count > 1 else []), "-m", "bench.scaling", "--worker"]
    for name in ("folder", "samples", "length", "batch", "megabytes"):
        command += [f"--{name}", str(getattr(options, name))]
    answer(command, environment(1))
    found: dict[str, Any] = json.loads((options.folder / f"{count}.json").read_text())
    return found


def arithmetic(ranks: Sequence[int]) -> None:
    """How many times faster ownership lets lowering be: by stages, waves, whole regions."""
    print("model      in        " + "".join(f"{count:>7}" for count in ranks))
    for model, shapes in REGIONS.items():
        groups = [
            [layer(f"s{s}.{p}", rows, shape.columns) for p, rows in enumerate(shape.rows)]
            for s, shape in enumerate(shapes)
        ]
        waves: dict[str, list[list[Node]]] = {}
        for shape, nodes in zip(shapes, groups, strict=True):
            waves.setdefault(shape.layer, []).append(nodes)
        rows = {
            "stages": [[nodes] for nodes in groups],
            "waves": list(waves.values()),
            "regions": [[[node] for nodes in groups for node in nodes]],
        }
        for where, each in rows.items():
            print(f"{model:<10} {where:<10}" + "".join(f"{gain(each, n):>7.2f}" for n in ranks))


def gain(waves: Sequence[Sequence[Sequence[Node]]], ranks: int) -> float:
    """Cost of all layers over that of the longest loads, one wave after the other."""
    found = owners(waves, ranks)
    each = [[node for nodes in wave for node in nodes] for wave in waves]
    longest = sum(
        max(sum(cost(n) for n in nodes if found[n.name] == rank) for rank in range(ranks))
        for nodes in each
    )
    return sum(cost(node) for nodes in each for node in nodes) / longest


def layer(name: str, rows: int, columns: int) -> Node:
    """A linear of this shape."""
    weight = Parameter(name=f"{name}.weight", dtype="bf16", shape=(rows, columns))
    kind = ValueType(dtype="f32", shape=("B", "L", rows))
    return Node(name=name, op="linear", inputs=("x",), type=kind, path=name, parameters=(weight,))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, or print what ownership allows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=3072)
    parser.add_argument("--experts", type=int, default=0, help="of a mixture; 0 is a dense model")
    parser.add_argument("--chosen", type=int, default=4, help="experts of a token")
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--megabytes", type=int, default=64)
    parser.add_argument("--arithmetic", action="store_true")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        work(options)
    elif options.arithmetic:
        arithmetic((1, 2, 4, 8, 16, 32, 64))
    else:
        measure(options)


if __name__ == "__main__":
    main()
