"""Do one job in this process: quantize, measure, write the result.

python -m bench.quality.worker WORK.json RESULT.json
"""

import json
import os
import resource
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

import qdc
from bench.common.clocks import Stopwatch
from bench.common.files import write
from bench.common.pipelines import overrides
from bench.common.samples import calibration_states, held_out
from bench.peers import isolated
from bench.peers.placing import with_weights
from qdc.compiling.collect import environment
from qdc.frontend.opening import open_model

from .jobs import Work
from .measure import drift, losses
from .result import Cost, Layer, Losses, Result


class Quantized(NamedTuple):
    """A quantized model and the fields of the result that only its maker knows."""

    model: nn.Module
    fields: dict[str, Any]


def main(arguments: list[str]) -> None:
    """Read the work, write the result."""
    source, target = map(Path, arguments)
    work = Work.model_validate_json(source.read_text(encoding="utf-8"))
    write(run(work).model_dump_json(indent=1) + "\n", target)


def run(work: Work) -> Result:
    """Quantize and, if the work has windows, judge."""
    load = os.getloadavg()
    made = _library(work, load) if work.peer else _compile(work, load)
    judged: dict[str, Any] = {}
    if work.windows:
        graph = open_model(work.model)[1].graph
        windows = held_out(work.model, work.windows, work.held_out)
        original = qdc.load_original(work.model)
        mask = graph.model.mask
        judged["candidate"] = losses(made.model, windows, mask)
        judged["original"] = _original(work, original, windows, mask)
        judged["drift"] = drift(made.model, original, graph, windows, mask)
    return Result(
        digest=work.digest,
        name=work.name,
        seed=work.seed,
        what=work.what,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment("cpu"),
        **made.fields,
        **judged,
    )


def _compile(work: Work, load: tuple[float, float, float]) -> Quantized:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        given: dict[str, Any] = {**overrides(work.pipeline, work.seed, work.samples)}
        with Stopwatch() as watch:
            report = qdc.compile(work.model, work.pipeline, out=out, write_report=False, **given)
        cost = _cost(watch.seconds, watch.processor, resource.RUSAGE_SELF, load)
        model = qdc.load(out)
    layers = {
        layer.name: Layer(kind=layer.kind, error=layer.error, orders=layer.orders)
        for layer in report.layers
    }
    return Quantized(
        model,
        {
            "version": f"qdc {qdc.__version__}",
            "cost": cost,
            "sign_bits": float(report.sign_bits),
            "effective_bits": report.effective_bits,
            "file_bytes": report.tensor_bytes,
            "layers": layers,
            "passes": {entry.name: entry.seconds for entry in report.passes},
        },
    )


def _library(work: Work, load: tuple[float, float, float]) -> Quantized:
    samples: dict[str, Any] = {} if work.samples is None else {"samples": work.samples}
    tokens = calibration_states(work.model, work.seed or 0, **samples).tokens
    found = isolated.quantize(
        work.peers_python, work.peer, work.model, tokens, work.seed or 0, **work.options
    )
    return Quantized(
        with_weights(work.model, found.weights),
        {
            "version": f"{found.name} {found.version}",
            "cost": _cost(found.seconds, found.processor_seconds, resource.RUSAGE_CHILDREN, load),
            "sign_bits": found.code_bits,
            "effective_bits": found.effective_bits,
            "file_bytes": None,
            "layers": {},
            "passes": {},
            "notes": found.notes,
        },
    )


def _cost(seconds: float, processor: float, whose: int, load: tuple[float, float, float]) -> Cost:
    peak = resource.getrusage(whose).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Cost(
        seconds=seconds,
        processor_seconds=processor,
        peak_bytes=peak,
        threads=torch.get_num_threads(),
        load=load,
    )


def _original(work: Work, model: nn.Module, windows: Tensor, mask: int) -> tuple[Losses, ...]:
    """The original's losses, which are the same for every job."""
    kept = TypeAdapter(tuple[Losses, ...])
    if work.original.is_file():
        return kept.validate_json(work.original.read_bytes())
    found = losses(model, windows, mask)
    write(json.dumps(kept.dump_python(found, mode="json")) + "\n", work.original)
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
