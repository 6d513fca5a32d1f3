"""Measure the triton backend on this machine's GPU: see ``python -m bench.gpu --help``."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.common.files import write
from bench.common.markdown import END, MARK, replace_part
from bench.common.processes import ROOT

if TYPE_CHECKING:
    from .result import Result

PART = "bench.gpu"
PARTS = ("linears", "model", "compile")
KEPT = 90.0
"""Seconds of the budget that stay for models and the compile when linears take long."""
TUNING = 0.25
"""Of the budget, at the most."""


def main(arguments: list[str] | None = None) -> int:
    """Return 0; 1 if there is no GPU, or a kernel gave a wrong result."""
    given = _parser().parse_args(arguments)
    if given.dry_run:
        if given.docs is not None:
            print("a dry run measures nothing: --docs is for a GPU", file=sys.stderr)
            return 1
        if "triton" in sys.modules and os.environ.get("TRITON_INTERPRET") != "1":
            print("triton is loaded without its interpreter", file=sys.stderr)
            return 1
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    if not given.dry_run and not torch.cuda.is_available():
        print("torch sees no CUDA device; --dry-run runs all code without one", file=sys.stderr)
        return 1
    with torch.no_grad():
        result = _run(given, arguments)
    write(result.model_dump_json(indent=1) + "\n", given.out / "gpu.json")
    from .page import page

    text = page(result)
    write(text, given.out / "gpu.md")
    if given.docs is not None:
        _insert(given.docs, text)
    print(text)
    wrong = [row for row in result.rows if row.deviation is not None and row.deviation > 1]
    for row in wrong:
        print(f"WRONG: {row.model} {row.layer}, M = {row.tokens}", file=sys.stderr)
    return 1 if wrong else 0


def _run(given: argparse.Namespace, arguments: list[str] | None) -> "Result":
    import torch

    from . import card, linears, region, step, tuning
    from .clock import Clock, OutOfTime
    from .result import Result
    from .sizes import DRY, FULL

    began = time.monotonic()
    device = torch.device("cpu" if given.dry_run else "cuda")
    clock, sizes = Clock(device, given.budget), DRY if given.dry_run else FULL
    if given.samples or given.length:
        samples, length = given.samples or sizes.samples, given.length or sizes.length
        sizes = replace(sizes, samples=samples, length=length)
    words = sys.argv[1:] if arguments is None else arguments
    result = Result(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        command=shlex.join(["python", "-m", "bench.gpu", *words]),
        card=card.look(clock, sizes.copy_bytes, sizes.product_side),
    )

    def part(name: str, run: Callable[[], None]) -> None:
        print(f"{name}, {clock.left:.0f} s left", file=sys.stderr, flush=True)
        try:
            run()
        except OutOfTime:
            result.unfinished.append(f"{name}: the budget of {given.budget:.0f} s was spent")
        except torch.OutOfMemoryError as error:
            result.unfinished.append(f"{name}: {str(error).splitlines()[0][:160]}")

    def choose() -> None:
        budget = TUNING * given.budget
        result.tuned = tuning.measure(clock, result.card, sizes, budget)

    def products() -> None:
        own = Clock(device, max(0.0, clock.left - KEPT * (not given.dry_run)))
        linears.measure(own, result.card, sizes, result.rows)

    def model() -> None:
        result.models = step.Models(layers=sizes.config["n_layers"])
        step.measure(clock, sizes, result.models)

    def compile_one() -> None:
        result.compile = region.measure(clock, sizes)

    if "linears" in given.only and not given.no_tune:
        part("tune", choose)
    for name, run in (("model", model), ("linears", products), ("compile", compile_one)):
        if name in given.only:
            part(name, run)
    result.seconds = time.monotonic() - began
    return result


def _insert(docs: Path, text: str) -> None:
    """Put the page between its marks, which are set behind everything else the first time."""
    found = docs.read_text(encoding="utf-8")
    mark = MARK.format(PART)
    if mark not in found:
        found = f"{found.rstrip()}\n\n{mark}\n{END}\n"
    write(replace_part(found, PART, text), docs)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description="Kernels, a whole model and a compile on one CUDA device, against bf16 and "
        "what else is installed. Writes gpu.json and gpu.md.",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "out" / "gpu")
    parser.add_argument("--docs", type=Path, help="also put the page into this file")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--budget", type=float, default=450.0, help="seconds for everything")
    parser.add_argument("--no-tune", action="store_true", help="measure the default choices")
    parser.add_argument("--samples", type=int, help="of the compile")
    parser.add_argument("--length", type=int, help="tokens of each")
    parser.add_argument(
        "--dry-run", action="store_true",
        help="run all code at toy sizes in Triton's interpreter: no measurement",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
