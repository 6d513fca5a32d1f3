"""Do one work in this process: make a quantized model, judge it, write the result.

python -m qdc.comparing.worker WORK.json RESULT.json

A process of its own makes the peak of memory the method's, and a crash costs one result. What it
does goes to stdout, a line each; it ends when its parent does.
"""

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch import nn

from qdc.comparing.judge import judge
from qdc.comparing.lifeline import end_with_parent
from qdc.comparing.result import Cost, Layer, Result
from qdc.comparing.work import Work
from qdc.compiling.collect import environment
from qdc.compiling.compiler import compile_model
from qdc.compiling.options import CompileOptions
from qdc.disk import replace_bytes
from qdc.errors import QdcError
from qdc.pipeline.registry import standard_registry
from qdc.runtime.device import find_device
from qdc.runtime.load import load_artifact
from qdc.units import StepProgress
from qdc.version import __version__

MARK = "\x1eqdc "
"""Begins a line on stdout that says what is being done."""
EVERY = 0.2
"""Seconds between two such lines on the same step."""


class Made(NamedTuple):
    """A quantized model, what making it took, and fields of the result that its maker knows."""

    model: nn.Module
    cost: Cost
    fields: dict[str, Any]


Maker = Callable[[Work, StepProgress], Made]


def main(arguments: list[str], make: Maker | None = None) -> int:
    """Read the work, write the result; return 0, or 1 if the input is at fault."""
    end_with_parent()
    source, target = map(Path, arguments)
    work = Work.model_validate_json(source.read_text(encoding="utf-8"))
    out, sys.stdout = sys.stdout, sys.stderr  # what libraries print is none of the parent's
    try:
        result = run(work, make or compiled, _Teller(out))
    except QdcError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    replace_bytes(target, f"{result.model_dump_json(indent=1)}\n".encode())
    return 0


def run(work: Work, make: Maker, tell: StepProgress) -> Result:
    """Quantize and, if the work says how, judge."""
    made = make(work, tell)
    judged = judge(work, made.model, tell)
    return Result(
        digest=work.digest,
        name=work.name,
        seed=work.seed,
        what=work.what,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(find_device(work.device)),
        cost=made.cost,
        **made.fields,
        **judged,
    )


def compiled(work: Work, tell: StepProgress) -> Made:
    """Compile the pipeline of the work, and load what came out. Raises ``QdcError``."""
    load, wall, processor = os.getloadavg(), time.perf_counter(), time.process_time()
    given = work.calibration
    with tempfile.TemporaryDirectory(dir=work.scratch) as folder:
        out = Path(folder) / "out"
        report = compile_model(
            CompileOptions.parse(
                model_dir=work.model,
                passes=work.pipeline,
                out=out,
                calibration=given.text,
                text_field=given.text_field,
                chat_fields=given.chat_fields,
                document_tokens=work.document_tokens,
                device=work.device,
                plugins=work.plugins,
                write_report=work.keep is not None,
                **work.overrides,
            ),
            tell,
        )
        seconds = time.perf_counter() - wall
        on_card = report.device.startswith("cuda")
        cost = Cost(
            seconds=seconds,
            processor_seconds=time.process_time() - processor,
            peak_bytes=report.peak_bytes if on_card else peak_bytes(resource.RUSAGE_SELF),
            threads=torch.get_num_threads(),
            load=load,
        )
        tell("load", 0, 1)
        model = load_artifact(out, standard_registry(work.plugins), report.device, None)
        if work.keep is not None:
            _keep(out, work.keep)
    layers = {
        layer.name: Layer(kind=layer.kind, error=layer.error, orders=layer.orders)
        for layer in report.layers
    }
    return Made(
        model,
        cost,
        {
            "version": f"qdc {__version__}",
            "sign_bits": float(report.sign_bits),
            "bits_word": report.bits_word,
            "effective_bits": report.effective_bits,
            "file_bytes": report.tensor_bytes,
            "layers": layers,
            "passes": _seconds(report.passes),
        },
    )


def peak_bytes(whose: int) -> int:
    """Highest resident memory of this process, or of its children."""
    return resource.getrusage(whose).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _seconds(passes: Any) -> dict[str, float]:
    """Seconds of each pass; of one that stands twice in the pipeline the sum."""
    found: dict[str, float] = {}
    for row in passes:
        found[row.name] = found.get(row.name, 0.0) + row.seconds
    return found


def _keep(out: Path, place: Path) -> None:
    """Move an artifact, and its report beside it, to where the user wants it."""
    place.parent.mkdir(parents=True, exist_ok=True)
    for suffix in ("", "-report"):
        target = place.with_name(place.name + suffix)
        shutil.rmtree(target, ignore_errors=True)
        out.with_name(out.name + suffix).rename(target)


class _Teller:
    """Writes what is being done for the parent, not too often."""

    def __init__(self, out: TextIO) -> None:
        self.out, self.last, self.what = out, 0.0, ""

    def __call__(self, what: str, done: int, total: int) -> None:
        now = time.monotonic()
        if what == self.what and now - self.last < EVERY:
            return
        self.last, self.what = now, what
        print(MARK + json.dumps([what, done, total]), file=self.out, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
