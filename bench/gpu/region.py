"""Time ``qdc compile`` of one region of the width of LLaDA-8B, by pass, in a process of its own."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from pydantic import BaseModel

from bench.memory import build

from .clock import Clock
from .sizes import Sizes

ROOT = Path(__file__).parents[2]


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
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        try:
            done = subprocess.run(
                list(map(str, command)), capture_output=True, text=True, check=False,
                timeout=max(1, clock.left), env={**os.environ, "PYTHONPATH": path},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            found.failed = f"not done after {error.timeout:.0f} s"
            return found
    if done.returncode:
        found.failed = (done.stderr.strip().splitlines() or ["no message"])[0]
        return found
    report = json.loads(done.stdout)
    found.seconds = report["seconds"]
    found.passes = {row["name"]: row["seconds"] for row in report["passes"]}
    return found
