"""Many requests at one server at once: seconds, latencies, batches, and whether any is wrong.

    python -m bench.serving examples/tiny-llada --requests 200 --batch 8 32

Each answer is compared with what its prompt alone gives in this process. Client, server and check
run on one machine and share its processors.
"""

import argparse
import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import openai

from bench.common.markdown import header, row
from bench.common.processes import environment, peak_bytes
from qdc.cli.models import Opened, open_runnable
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions

COLUMNS = (
    "batch", "seconds", "requests/s", "tokens/s", "median", "slowest", "memory", "wrong",
)  # fmt: skip
WORDS = ("def", " read", " write", "(", ")", " import", " os", " class", " return", " self", ".")


def start(model: Path, batch: int) -> tuple["subprocess.Popen[str]", str]:
    """Serve a model on a free port."""
    options = ("--port", "0", "--json", "--batch", str(batch), "--client-queue", "256")
    process = subprocess.Popen(
        [sys.executable, "-m", "qdc", "serve", str(model), *options],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    lines = ""
    while not lines.endswith("}\n"):
        line = process.stdout.readline()
        if not line:
            sys.exit(f"the server ended with status {process.wait()} before it was ready")
        lines += line
    return process, json.loads(lines)["url"]


async def ask_all(url: str, prompts: list[str], length: int, steps: int, name: str) -> list[float]:
    """Ask at once; the answers replace the prompts. Gives seconds, each from the start."""
    started = time.perf_counter()
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:

        async def ask(place: int) -> float:
            found = await client.completions.create(
                model=name,
                prompt=prompts[place],
                max_tokens=length,
                seed=place,
                temperature=1.0,
                extra_body={"steps": steps},
            )
            prompts[place] = found.choices[0].text
            return time.perf_counter() - started

        return await asyncio.gather(*map(ask, range(len(prompts))))


def wrong(opened: Opened, prompts: list[str], found: list[str], length: int, steps: int) -> int:
    """Answers that are not what their prompt alone gives."""
    count = 0
    for seed, (prompt, text) in enumerate(zip(prompts, found, strict=True)):
        options = DecodeOptions(length=length, steps=steps, seed=seed, temperature=1.0)
        alone = decode(opened.module, [opened.encode(prompt)], options, opened.decoding)
        count += text != opened.decode(alone.answers[0])
    return count


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--length", type=int, default=16)
    parser.add_argument("--steps", type=int, default=4)
    given = parser.parse_args(arguments)
    draw = random.Random(0)
    prompts = ["".join(draw.choices(WORDS, k=1 + n % 8)) for n in range(given.requests)]
    opened = open_runnable(given.model, "cpu", [])
    print(header(COLUMNS, left=0))
    for batch in given.batch:
        process, url = start(given.model, batch)
        found = list(prompts)
        name = given.model.resolve().name
        seconds = sorted(asyncio.run(ask_all(url, found, given.length, given.steps, name)))
        memory = peak_bytes(process.pid) / 1e6
        process.terminate()
        if status := process.wait(60):
            sys.exit(f"the server ended with status {status}")
        total = seconds[-1]
        errors = wrong(opened, prompts, found, given.length, given.steps)
        cells = (
            batch, f"{total:.2f}", f"{len(seconds) / total:.0f}",
            f"{len(seconds) * given.length / total:.0f}", f"{seconds[len(seconds) // 2]:.2f} s",
            f"{total:.2f} s", f"{memory:.0f} MB", errors,
        )  # fmt: skip
        print(row(cells), flush=True)


if __name__ == "__main__":
    main()
