"""A body too large is answered, and whoever still sends it comes to read that."""

import http.client
import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from bench.requests.kinds import KEYS, MOST_BODY
from qdc.serve import connection
from tests.serve.conftest import PATIENCE, Served

LARGE = 8 << 20
JSON = {"Content-Type": "application/json", "Authorization": f"Bearer {KEYS[0]}"}
HEAD = (
    "POST /generate HTTP/1.1\r\nHost: localhost\r\n"
    + "".join(f"{name}: {value}\r\n" for name, value in JSON.items())
).encode()
TRIES = 3


def parts(size: int) -> Iterator[bytes]:
    for _ in range(0, size, 1 << 16):
        yield b" " * (1 << 16)


@pytest.mark.parametrize("size", [MOST_BODY + 1, LARGE])
@pytest.mark.parametrize("chunked", [False, True])
def test_httpx(locked: Served, size: int, chunked: bool) -> None:
    content = parts(size + 65535) if chunked else b" " * size
    found = httpx.post(f"{locked.url}/generate", content=content, headers=JSON)
    assert found.status_code == 413
    assert found.json()["error"]["code"] == "body_too_large"


@pytest.mark.parametrize("chunked", [False, True])
def test_urllib(locked: Served, chunked: bool) -> None:
    """It sends all before it reads a byte."""
    for _ in range(TRIES):
        data = parts(LARGE) if chunked else b" " * LARGE
        asked = urllib.request.Request(f"{locked.url}/generate", data, JSON)
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(asked, timeout=20)
        assert caught.value.code == 413
        assert json.load(caught.value)["error"]["code"] == "body_too_large"


def test_openai(locked: Served) -> None:
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=KEYS[0], max_retries=0)
    for _ in range(TRIES):
        with pytest.raises(openai.APIStatusError, match="a body may have") as caught:
            client.completions.create(model=locked.model, prompt="x" * LARGE)
        assert caught.value.status_code == 413
    assert client.models.list().data


@pytest.mark.parametrize(
    "headers", [(), ("Expect:",), ("Transfer-Encoding: chunked",),
                ("Transfer-Encoding: chunked", "Expect:")],
)  # fmt: skip
def test_curl(locked: Served, headers: tuple[str, ...], tmp_path: Path) -> None:
    """With Expect: 100-continue, as it sends large bodies, and without."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    given = (f"{name}: {value}" for name, value in JSON.items())
    (tmp_path / "large").write_bytes(b" " * LARGE)
    sent = [word for header in (*given, *headers) for word in ("-H", header)]
    for _ in range(TRIES):
        found = subprocess.run(
            ["curl", "-sS", "--data-binary", f"@{tmp_path / 'large'}", *sent,
             "-w", "%{http_code}", f"{locked.url}/generate"],
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert found.stderr == ""
        assert found.returncode == 0
        assert found.stdout.endswith("413")
        assert '"code":"body_too_large"' in found.stdout


def test_expect_continue_is_answered_without_asking_for_the_body(locked: Served) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=20) as line:
        line.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % LARGE)
        found = b"".join(iter(lambda: line.recv(1 << 16), b""))
    assert found.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in found.lower()


@pytest.mark.parametrize("framing", [b"Content-Length: %d" % LARGE, b"Transfer-Encoding: chunked"])
def test_a_client_that_sends_slowly_reads_the_answer(locked: Served, framing: bytes) -> None:
    """And then finds the other half open for a while: nothing it sends is reset."""
    part = b"8000\r\n" + b" " * 0x8000 + b"\r\n"
    with socket.create_connection(("127.0.0.1", locked.port), timeout=20) as line:
        line.sendall(HEAD + framing + b"\r\n\r\n" + part * 4)
        found = b"".join(iter(lambda: line.recv(1 << 16), b""))  # up to its end
        for _ in range(20):
            line.sendall(part)
    assert found.startswith(b"HTTP/1.1 413 ")
    assert json.loads(found.partition(b"\r\n\r\n")[2])["error"]["code"] == "body_too_large"


def test_what_is_read_for_nothing_is_bounded(locked: Served) -> None:
    with socket.create_connection(("127.0.0.1", locked.port), timeout=20) as line:
        line.sendall(HEAD + b"Content-Length: 999999999999\r\n\r\n")
        with pytest.raises(ConnectionError):
            line.sendall(b" " * (2 * connection.DROPPED))


def test_the_time_for_it_is_bounded_too(server: Served) -> None:
    """More bytes buy no more of it."""

    def drip(line: socket.socket) -> None:
        while time.monotonic() < begun + 20:
            line.sendall(b" ")
            time.sleep(PATIENCE / 20)

    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as line:
        line.sendall(HEAD + b"Content-Length: 999999999999\r\n\r\n")
        begun = time.monotonic()
        with pytest.raises(ConnectionError):
            drip(line)
        assert time.monotonic() > begun + PATIENCE * 0.9


def test_others_are_answered_meanwhile(locked: Served) -> None:
    def flood() -> None:
        with socket.create_connection(("127.0.0.1", locked.port), timeout=20) as line:
            line.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(100):
                line.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    other = http.client.HTTPConnection("127.0.0.1", locked.port, timeout=20)
    other.request("POST", "/generate", b'{"prompt":"x","max_tokens":1}', JSON)
    assert other.getresponse().status == 200
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
