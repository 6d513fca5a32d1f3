"""A model of LLaDA-8B's shapes end to end, in processes of their own: memory, and a cold start."""

import json
import resource
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench.common.artifacts import HIDDEN, WIDTH, write_random
from bench.common.processes import answer, environment

POSITIONS = 64
"""Of the first forward: a prompt and a block to be filled."""
LINEARS = 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN
"""Weights of a region."""
REGIONS = 32
"""Of the published model."""


class Run(NamedTuple):
    """What a process saw, from its start to the first token."""

    seconds: float
    """By the wall clock, the start of Python included."""
    processor: float
    resident: int
    """Bytes beyond those after the imports, workspace and activations included."""
    mapped: int
    """The part of them that are pages of files."""


def weights(regions: int, vocabulary: int) -> int:
    """Weights of linears, embedding and head."""
    return regions * LINEARS + 2 * vocabulary * WIDTH


def write(folder: Path, regions: int, vocabulary: int) -> Path:
    """Write the artifact, vocabulary at 8 bits."""
    return write_random(folder / f"regions-{regions}", regions, vocabulary)


def run(artifact: Path, backend: str, threads: int) -> Run:
    """Start a process that loads the artifact and gives one token."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "bench.cpu.whole", artifact, backend]
    found = json.loads(answer(command, environment(threads)))
    return Run(time.perf_counter() - begun, **found)


def main() -> None:
    """In the process: load, give a token, say what it took."""
    artifact, backend = sys.argv[1:]
    import torch

    import qdc
    import qdc.backends
    import qdc.runtime.load

    before = _resident()
    model = qdc.load(artifact, backend=backend)
    tokens = torch.randint(2, 2000, (1, POSITIONS), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first = int(model(tokens)[0, -1].argmax())
    assert first >= 0
    used = resource.getrusage(resource.RUSAGE_SELF)
    after = _resident()
    found = {
        "processor": used.ru_utime + used.ru_stime,
        "resident": sum(after) - sum(before),
        "mapped": after[1] - before[1],
    }
    print(json.dumps(found))


def _resident() -> tuple[int, int]:
    """Bytes of memory of its own, and of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    sizes = dict(line.split(":", 1) for line in lines if line.startswith("Rss"))
    anonymous, file = (int(sizes[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    return anonymous, file


if __name__ == "__main__":
    main()
