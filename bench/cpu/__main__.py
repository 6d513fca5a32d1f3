"""What the backend ``cpu`` takes and gives, against torch's bf16 products on the same threads.

    python -m bench.cpu --linears
    python -m bench.cpu --integers
    python -m bench.cpu --whole --folder /var/tmp

Linears of LLaDA-8B are timed in turns with torch's bf16 linear and, with ``--peers``, the 2-bit
products of OpenVINO and ONNX Runtime where they are importable; a ratio is the median of those of
the turns. One thread is timed by the processor's time, which stands while other programs have the
core. ``--integers`` are those of inputs and weights of few bits. ``--whole`` writes random
artifacts of two and four regions with a vocabulary of 8 bits, and runs each in fresh processes to
the first token.
"""

import argparse
import platform
import statistics
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from bench.common.markdown import table
from bench.common.shapes import LLADA

from . import integers, linears, whole

TOKENS = (1, 4, 16, 32, 64, 128, 512)


def main() -> int:
    """Measure what is asked for, and print tables."""
    given = _parser().parse_args()
    print(f"{platform.machine()}, torch {torch.__version__}")
    if given.linears:
        for threads in given.threads:
            _linears(given, threads)
    if given.integers:
        for threads in given.threads:
            _integers(given, threads)
    if given.whole:
        with tempfile.TemporaryDirectory(prefix="cpu-", dir=given.folder) as scratch:
            _whole(Path(scratch), given)
    return 0


def _linears(given: argparse.Namespace, threads: int) -> None:
    rows = (
        row
        for name, codec in linears.shapes().items()
        if not given.only or name in given.only
        for row in linears.measure(
            name, codec, given.tokens, threads, given.turns, peers=given.peers
        )
    )
    _show(rows, threads)


def _integers(given: argparse.Namespace, threads: int) -> None:
    rows = (
        row
        for name, codec in integers.grids().items()
        if not given.only or name in given.only
        for row in integers.measure(name, codec, given.tokens, threads, given.turns)
    )
    _show(rows, threads)


def _show(measured: Iterable[linears.Row], threads: int) -> None:
    """Print one table; what is done is said as it is."""
    rows, notes, methods = [], dict[str, str](), dict[str, None]()
    for row in measured:
        print(f"{row.name}, {row.tokens}: {row.ratios}", file=sys.stderr, flush=True)
        rows.append(row)
        notes |= row.notes
        methods |= dict.fromkeys(row.ratios)
    others = [method for method in methods if method != linears.BASELINE]
    head = ("linear", "M", "bf16 ms", *(f"{method} ms" for method in others), *others)
    cells = [
        (
            f"{row.name} {row.rows} x {row.columns}",
            row.tokens,
            *(_ms(row.seconds.get(method)) for method in (linears.BASELINE, *others)),
            *(f"{row.ratios[method]:.2f}" if method in row.ratios else "" for method in others),
        )
        for row in rows
    ]
    print(f"\n{threads} threads; the last columns are bf16 over each\n")
    print(table(head, cells))
    for method, why in notes.items():
        print(f"\n{method}: {why}")


def _ms(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}"


def _whole(folder: Path, given: argparse.Namespace) -> None:
    found: dict[tuple[int, str], list[whole.Run]] = {}
    vocabulary, threads = given.vocabulary, given.threads[-1]
    artifacts = {regions: whole.write(folder, regions, vocabulary) for regions in (2, 4)}
    cases = [(2, "cpu"), (4, "cpu"), *([(2, "reference")] if given.dense else [])]
    for turn in range(given.repeats):
        for case in cases if turn % 2 else cases[::-1]:
            regions, backend = case
            one = whole.run(artifacts[regions], backend, threads)
            print(case, one, file=sys.stderr, flush=True)
            found.setdefault(case, []).append(one)
    middle = {
        case: whole.Run(*(statistics.median(each) for each in zip(*runs, strict=True)))
        for case, runs in found.items()
    }
    rows = [
        (
            f"{regions} regions, {backend}",
            f"{run.seconds:.1f}",
            f"{run.processor:.1f}",
            f"{run.resident / 1e6:.0f}",
            f"{run.mapped / 1e6:.0f}",
            f"{run.resident / (2 * whole.weights(regions, vocabulary)):.3f}",
        )
        for (regions, backend), run in middle.items()
    ]
    print(f"\n{threads} threads, from the start of Python to the first token\n")
    print(table(("model", "s", "processor s", "MB", "of them mapped", "over bf16"), rows))
    packed = middle[2, "cpu"]
    if given.dense:
        dense = middle[2, "reference"]
        print(f"\ntime to the first token: {packed.seconds / dense.seconds:.2f}x, ", end="")
        print(f"of the processor {packed.processor / dense.processor:.2f}x")
    region = (middle[4, "cpu"].resident - packed.resident) / 2
    whole_model = packed.resident + (whole.REGIONS - 2) * region
    share = whole_model / (2 * whole.weights(whole.REGIONS, vocabulary))
    print(f"a region more takes {region / 1e6:.1f} MB: {whole.REGIONS} regions take ", end="")
    print(f"{whole_model / 1e9:.2f} GB, {share:.3f}x bf16")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bench.cpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--linears", action="store_true", help="time linears")
    parser.add_argument("--integers", action="store_true", help="time products of whole numbers")
    parser.add_argument("--whole", action="store_true", help="run a whole model")
    parser.add_argument("--peers", action="store_true", help="with other libraries' products")
    parser.add_argument("--only", nargs="+", help="names of linears: 'down', 'head', ...")
    parser.add_argument("--tokens", type=int, nargs="+", default=list(TOKENS), help="rows")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--turns", type=int, default=7, help="of each linear")
    parser.add_argument("--repeats", type=int, default=3, help="of each process")
    parser.add_argument("--vocabulary", type=int, default=LLADA.vocabulary, help="of the model")
    parser.add_argument("--dense", action="store_true", help="run the reference too: 9 GB")
    parser.add_argument("--folder", type=Path, help="where the artifacts are written")
    return parser


if __name__ == "__main__":
    sys.exit(main())
