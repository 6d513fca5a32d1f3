"""Many at once: nothing is lost, nothing is mixed up."""

import asyncio
import random
from collections.abc import Iterator

import openai
import pytest

from qdc.cli.models import Opened
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.serve.conftest import Served, running
from tests.support.checkpoints import EMBEDDED

WORDS = (
    "def",
    " read",
    " write",
    "(",
    ")",
    " import",
    " os",
    " class",
    " return",
    " self",
    ".",
    "=",
)


@pytest.fixture
def patient() -> Iterator[Served]:
    """A server with its own patience: of 200 connections some wait for a core before they speak."""
    with running(EMBEDDED, "--batch", 32, "--client-queue", 256) as served:
        yield served


@pytest.mark.parametrize("requests", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_parallel_requests(requests: int, patient: Served, opened: Opened) -> None:
    """Each answer is what its prompt alone gives, whoever it was decoded with."""
    draw = random.Random(7)
    asked = [
        ("".join(draw.choices(WORDS, k=1 + number % 4)), (number % 2) * 1.0, number)
        for number in range(requests)
    ]

    async def ask_all() -> list[str]:
        url = f"{patient.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:

            async def ask(prompt: str, temperature: float, seed: int) -> str:
                stream = seed % 5 == 0
                found = await client.completions.create(
                    model=patient.model,
                    prompt=prompt,
                    max_tokens=4,
                    temperature=temperature,
                    seed=seed,
                    stream=stream,
                    extra_body={"steps": 2},
                )
                if isinstance(found, openai.AsyncStream):
                    return "".join([chunk.choices[0].text async for chunk in found])
                return found.choices[0].text

            return await asyncio.gather(*(ask(*each) for each in asked))

    found = asyncio.run(ask_all())
    for (prompt, temperature, seed), text in zip(asked, found, strict=True):
        options = DecodeOptions(length=4, steps=2, temperature=temperature, seed=seed)
        alone = decode(opened.module, [opened.encode(prompt)], options, opened.decoding)
        assert text == opened.decode(alone.answers[0]), (prompt, temperature, seed)
