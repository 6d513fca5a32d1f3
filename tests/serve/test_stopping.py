"""A server that is told to stop ends what runs, refuses what waits, and ends with 0."""

import os
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import pytest

from qdc.cli import run
from tests.serve.conftest import running
from tests.support.checkpoints import write_checkpoint

BODY = {"prompt": "def", "max_tokens": 200, "model": "slow"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("stop") / "model",
        d_model=32, mlp_hidden_size=32, n_layers=1, max_length=256,
    )  # fmt: skip


def test_the_full_queue_and_the_stop(model: Path) -> None:
    """One request is decoded, one waits, the third is refused; then SIGINT."""
    options = ("--name", "slow", "--queue", 1, "--batch", 1, "--max-length", 250)
    with running(model, *options) as served:
        assert served.model == "slow"
        found: list[httpx.Response] = []

        def ask(steps: int) -> None:
            body = {**BODY, "steps": steps}
            found.append(httpx.post(f"{served.url}/v1/completions", json=body, timeout=60))

        def wait_for(state: tuple[int, int]) -> None:
            deadline = time.monotonic() + 20
            while True:
                health = httpx.get(f"{served.url}/health").json()
                if (health["running"], health["waiting"]) == state:
                    return
                assert time.monotonic() < deadline, health

        threads = [threading.Thread(target=ask, args=(steps,)) for steps in (150, 149)]
        for thread, state in zip(threads, ((1, 0), (1, 1)), strict=True):
            thread.start()
            wait_for(state)
        third = httpx.post(f"{served.url}/v1/completions", json={**BODY, "steps": 148})
        assert third.status_code == 429
        assert third.json()["error"]["type"] == "rate_limit_error"
        assert int(third.headers["retry-after"]) >= 1
        os.kill(served.process.pid, signal.SIGINT)
        for thread in threads:
            thread.join(30)
        waited, ran = found
        assert (waited.status_code, ran.status_code) == (503, 200)
        assert waited.json()["error"]["code"] == "stopping"
        assert ran.json()["usage"]["completion_tokens"] <= 200
        assert ran.json()["choices"][0]["finish_reason"] in ("stop", "length")
        served.process.wait(20)


def test_what_is_no_way_to_start(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*options: object) -> str:
        assert run(["serve", str(model), *map(str, options)]) == 1
        out, error = capsys.readouterr()
        assert out == ""
        assert error.startswith("error[QDC")
        return error

    assert "more than the model takes, 256" in refused("--port", 0, "--max-length", 257)
    assert "lets no request in" in refused("--max-body", 0)
    assert "is no size" in refused("--max-body", "much")
    assert "cannot listen on 192.0.2.1" in refused("--host", "192.0.2.1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "address already in use" in refused("--port", taken.getsockname()[1])


def test_without_the_extra(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "fastapi", None)
    for name in [name for name in sys.modules if name.startswith(("qdc.serve.", "qdc.cli.serve"))]:
        monkeypatch.delitem(sys.modules, name)
    assert run(["serve", str(model)]) == 1
    assert "pip install 'qdc-compiler[serve]'" in capsys.readouterr().err
