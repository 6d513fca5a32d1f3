"""One client floods the server; another one hardly notices."""

import asyncio
import time

import httpx

from tests.serve.conftest import Served

FLOOD = 8


def test_a_flood_of_one_key_does_not_keep_another_waiting(locked: Served) -> None:
    """It is served after the request that runs, and no more of the flood's than one besides."""
    body = {"model": locked.model, "prompt": "x", "max_tokens": 24, "steps": 24}
    path = f"{locked.url}/v1/completions"

    async def test() -> tuple[int, int]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=60, limits=limits) as http:
            done = 0

            async def ask(key: str) -> None:
                nonlocal done
                headers = {"Authorization": f"Bearer {key}"}
                answer = await http.post(path, json=body, headers=headers)
                assert answer.status_code == 200, answer.text
                done += 1

            flood = [asyncio.ensure_future(ask("second")) for _ in range(FLOOD)]
            deadline = time.monotonic() + 20
            while (await http.get(f"{locked.url}/health")).json()["waiting"] < FLOOD // 2:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            before = done
            await ask("of-a-line")
            between = done - before - 1
            await asyncio.gather(*flood)
            return between, done

    between, done = asyncio.run(test())
    assert between <= 2
    assert done == FLOOD + 1
