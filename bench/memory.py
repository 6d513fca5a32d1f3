"""Peak memory of a compile at a given width, for models of several depths, beside the prediction.

    python -m bench.memory --regions 2 4

Builds a random LLaDA checkpoint of LLaDA-8B's width (4096, 12288) for each depth, compiles it on
the CPU with 8 samples of 256 tokens in a process of its own, and prints peak resident memory,
seconds, and what ``qdc plan`` predicts. Weights are random bf16, on whose values memory does not
depend. The vocabulary is small, so that the disk is spared; with its true size (``--vocabulary
126464``) embedding and head are part of the measurement.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import qdc
from bench.common.checkpoint import build
from bench.common.processes import ROOT, answer, environment

GIB = 1 << 30


def compile_alone(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Compile in a fresh process."""
    out = model.with_name(f"{model.name}-compiled")
    command = [
        sys.executable, "-m", "bench.memory", "--one", model, "--out", out,
        "--passes", options.passes, "--samples", options.samples, "--length", options.length,
    ]  # fmt: skip
    found: dict[str, Any] = json.loads(answer(command, environment()))
    shutil.rmtree(out)
    return found


def predict(model: Path, options: argparse.Namespace) -> int:
    """What ``qdc plan`` says of the host's memory, asked in a fresh process as a user does."""
    command = [
        sys.executable, "-m", "qdc", "plan", model, "--passes", options.passes,
        "--samples", options.samples, "--length", options.length, "--device", "cpu", "--json",
    ]  # fmt: skip
    return int(json.loads(answer(command, environment()))["host"]["nbytes"])


def one(options: argparse.Namespace) -> None:
    """The process that compiles: what it measured, as JSON."""
    report = qdc.compile(
        options.one,
        options.passes,
        out=options.out,
        samples=options.samples,
        length=options.length,
        write_report=False,
    )
    passes = {row.name: (row.seconds, row.peak_bytes) for row in report.passes}
    print(json.dumps({"peak": report.peak_bytes, "seconds": report.seconds, "passes": passes}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Build, compile, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=ROOT / "bench" / "out" / "memory")
    parser.add_argument("--regions", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--hidden", type=int, default=12288)
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--passes", default="default")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options)
        return
    peaks: list[int] = []
    for regions in options.regions:
        sizes = (options.width, options.hidden, options.vocabulary, regions)
        model = options.folder.absolute() / "-".join(map(str, sizes))
        if not model.exists():
            build(
                model, regions=regions, width=options.width, hidden=options.hidden,
                vocabulary=options.vocabulary,
            )  # fmt: skip
        predicted = predict(model, options)
        found = compile_alone(model, options)
        peaks.append(found["peak"])
        print(
            f"{regions} regions   peak {found['peak'] / GIB:.2f} GiB   predicted "
            f"{predicted / GIB:.2f} GiB ({predicted / found['peak']:.3f} of it)   "
            f"{found['seconds']:.0f} s"
        )
        for name, (seconds, peak) in found["passes"].items():
            print(f"    {name:<16} {seconds:8.1f} s   {peak / GIB:6.2f} GiB", flush=True)
    print(f"deepest over shallowest {peaks[-1] / peaks[0]:.3f}")


if __name__ == "__main__":
    main()
