"""Time ``qdc compile`` of one region of the width of LLaDA-8B, by pass, in a process of its own."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pydantic import BaseModel

from bench.common.checkpoint import build
from bench.common.processes import Failed, answer, environment

from .clock import Clock
from .sizes import Sizes


class Compile(BaseModel):
    """What one compile took."""

    pipeline: str
    samples: int
    length: int
    device: str
    seconds: float | None = None
    """As the report says: from the first byte read to the artifact in its place."""
    passes: dict[str, float] = {}
    """Seconds of each pass."""
    failed: str = ""


def measure(clock: Clock, sizes: Sizes) -> Compile:
    """Compile random weights; a compile that does not end within the budget is ended."""
    clock.check()
    if clock.measures:
        # What this process keeps for later is not there for the compile.
        torch.cuda.empty_cache()
    found = Compile(
        pipeline=sizes.passes, samples=sizes.samples, length=sizes.length, device=clock.device.type
    )
    with tempfile.TemporaryDirectory(prefix="qdc-bench-") as folder:
        model = Path(folder) / "model"
        build(model, regions=1, **sizes.region)
        command = [
            sys.executable, "-m", "qdc", "compile", model, "-o", Path(folder) / "out",
            "--passes", sizes.passes, "--samples", sizes.samples, "--length", sizes.length,
            "--device", clock.device.type, "--no-report", "--json",
        ]  # fmt: skip
        try:
            report = json.loads(answer(command, environment(), timeout=max(1, clock.left)))
        except subprocess.TimeoutExpired as error:
            found.failed = f"not done after {error.timeout:.0f} s"
            return found
        except Failed as error:
            lines = str(error).splitlines()
            found.failed = next((line for line in lines if line.startswith("error")), lines[-1])
            return found
    found.seconds = report["seconds"]
    found.passes = {row["name"]: row["seconds"] for row in report["passes"]}
    return found
