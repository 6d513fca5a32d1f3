"""A server of a model of canvases: what it offers, answers and refuses."""

import asyncio
from typing import Any

import httpx
import pytest

from qdc.cli.models import open_runnable
from qdc.runtime.decoding.loop import decode
from qdc.serve.app import Service, make_app
from qdc.serve.engine import Engine
from qdc.serve.limits import Limits
from qdc.serve.wording import Wording
from tests.support.canvas import CANVAS, write_canvas

OWN = "renoise{denoising-steps=2}"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Service:
    opened = open_runnable(write_canvas(tmp_path_factory.mktemp("canvas") / "model"), "cpu", [])
    limits = Limits(max_length=40)

    def run(prompts: Any, gaps: Any, options: Any, seeds: Any, watch: Any) -> Any:
        assert gaps is None
        return decode(opened.module, prompts, options, opened.decoding, watch, seeds=seeds)

    engine = Engine(run, limits, "")
    wording = Wording(opened.tokenizer, opened.encode)
    return Service("canvas", engine, wording, opened.decoding, limits)


def asked(service: Service, path: str, **body: object) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            if not body:
                return await client.get(path)
            return await client.post(path, json={"model": "canvas", **body}, timeout=60)

    return asyncio.run(send())


def test_offers_what_decodes_a_canvas(service: Service) -> None:
    offered = asked(service, "/v1/models").json()["data"][0]["qdc"]
    assert offered["canvas"] == CANVAS
    assert (offered["strategies"], offered["fill_strategies"]) == (["renoise"], [])
    assert offered["strategy_options"] == {"renoise": []}
    assert offered["caches"] == ["none", "prefix"]
    assert offered["default_length"] == 40


def test_answers_with_canvases_and_the_same_seed_answers_the_same(service: Service) -> None:
    body = {"prompt": "def read(path):", "max_tokens": 12, "strategy": OWN, "seed": 5}
    first, again = (asked(service, "/v1/completions", **body).json() for _ in range(2))
    assert first["choices"][0]["text"] == again["choices"][0]["text"]
    assert first["usage"]["completion_tokens"] <= 12


@pytest.mark.parametrize(
    ("path", "body", "problem"),
    [
        ("/v1/completions", {"strategy": "threshold"}, "the model has no mask token"),
        ("/v1/completions", {"max_tokens": 35}, "in canvases of 8"),
        ("/v1/completions", {"temperature": 0.5}, "temperature has no effect on renoise"),
        ("/fill", {"text": "a ___ b"}, "fills no gaps"),
    ],
)
def test_what_needs_masks_is_refused(
    service: Service, path: str, body: dict[str, object], problem: str
) -> None:
    given = body if path == "/fill" else {"prompt": "def read(path):", **body}
    refusal = asked(service, path, **given)
    assert refusal.status_code == 400
    assert problem in refusal.text
