"""A model that gives NaN: its own fault, which is said so, and the server goes on."""

import httpx
import pytest

from bench.requests.kinds import HOT
from tests.serve.conftest import Served

HEADERS = {"Authorization": "Bearer of-a-line"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_overflows_is_no_fault_of_a_request(locked: Served, stream: bool) -> None:
    asked = {"model": "hot", "max_tokens": 2, "stream": stream}

    def ask(prompt: list[int]) -> httpx.Response:
        body = {**asked, "prompt": prompt}
        return httpx.post(f"{locked.url}/v1/completions", json=body, headers=HEADERS, timeout=30)

    for _ in range(2):
        found = ask([5, HOT, 9])
        assert found.status_code == 500
        error = found.json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "broken_model")
        assert error["message"] == (
            "the logits of 2 of 2 masked positions are not finite; the fault is the model's: "
            "qdc verify tells whether the artifact hot is damaged"
        )
        assert ask([5, 9]).status_code == 200
    assert httpx.get(f"{locked.url}/health").json()["status"] == "ok"
