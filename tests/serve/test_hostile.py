"""What no decent client sends: the server says no in one form, and goes on."""

import json
import re
import socket
import time
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qdc.serve.bodies import (
    ChatRequest,
    CompletionRequest,
    Decoding,
    FillRequest,
    WatchRequest,
    read_body,
)
from qdc.serve.refusals import Refused
from tests.serve.conftest import MAX_BODY, PATIENCE, Served

PATHS = ("/v1/chat/completions", "/v1/completions", "/generate", "/fill")
JSON = {"Content-Type": "application/json"}
LONG = {"prompt": "x", "max_tokens": 250, "steps": 250}
DOCUMENT = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
FIELDS = (
    "model", "prompt", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "stream",
    "stream_options", "n", "strategy", "steps", "block", "cache", "threshold", "top_k", "logprobs",
    "tools", "response_format", "role", "content", "text", "gap_tokens",
)  # fmt: skip


@pytest.fixture(scope="module")
def http(server: Served) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=30)


def check(answer: httpx.Response, *statuses: int) -> dict[str, Any]:
    """An error in OpenAI's shape."""
    assert answer.status_code in statuses, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert "Traceback" not in error["message"]
    assert len(error["message"]) < 1000
    return dict(error)


def load(http: httpx.Client) -> int:
    state = http.get("/health").json()
    return int(state["running"] + state["waiting"])


def exchange(served: Served, *parts: bytes, wait: float = 0) -> tuple[bytes, float]:
    """Send bytes, read until the server closes; with the seconds that took."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as line:
        started = time.monotonic()
        for part in parts:
            line.sendall(part)
            time.sleep(wait)
        found = b""
        while part := line.recv(1 << 16):
            found += part
        return found, time.monotonic() - started


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"nul", b"\xff\xfe", b"[]", b"1", b'{"a":1}', b'{"prompt":"\\ud800"}',
     b"[" * 50_000, b'{"prompt":' * 5_000, b'{"max_tokens":' + b"9" * 20_000 + b"}",
     b'{"prompt":"x","prompt":"y"}', b'{"model":{"%s":1,"%s":2}}' % ((b"k" * 9000,) * 2),
     b'{"prompt":"x","temperature":NaN}', b'{"prompt":"x","temperature":1e999}'],
)  # fmt: skip
def test_bodies_that_are_no_request(http: httpx.Client, path: str, body: bytes) -> None:
    check(http.post(path, content=body, headers=JSON), 400)


def test_the_name_with_two_values_is_told(http: httpx.Client) -> None:
    """As in artifacts: whoever reads the first must not see another request than we do."""
    for body in (
        b'{"prompt":"x","max_tokens":1,"max_tokens":2}',
        b'{"a":{"max_tokens":[],"max_tokens":1}}',
    ):
        error = check(http.post("/generate", content=body, headers=JSON), 400)
        assert error["message"] == "the body gives 'max_tokens' two values"
    deep = b'{"prompt":"x","user":%s1%s}' % (b"[" * 100, b"]" * 100)
    error = check(http.post("/generate", content=deep, headers=JSON), 400)
    assert error["message"] == "the body is nested more than 100 deep"


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (CompletionRequest, '{"model":"m","prompt":[%s]}'),
        (CompletionRequest, '{"model":"m","prompt":[[%s]]}'),
        (ChatRequest, '{"model":"m","messages":[%s]}'),
        (ChatRequest, '{"model":"m","messages":[{"role":"user","content":[%s]}]}'),
        (WatchRequest, '{"messages":[%s]}'),
        (FillRequest, '{"text":[%s]}'),
    ],
)
def test_not_every_wrong_item_of_a_list_is_reported(kind: type[Decoding], body: str) -> None:
    """A report of each takes the event loop seconds."""
    data = (body % ",".join(["{}"] * 1000)).encode()
    with pytest.raises(Refused) as caught:
        read_body(kind, data)
    assert len(re.findall("[0-9]{2,} more", caught.value.message)) == 0


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(PATHS),
    st.dictionaries(st.sampled_from(FIELDS), DOCUMENT, max_size=5),
    st.booleans(),
)
def test_values_of_any_kind(
    http: httpx.Client, server: Served, path: str, fields: dict[str, Any], valid: bool
) -> None:
    """Whatever stands in a field: an answer or a refusal, never a failure."""
    message = {"role": "user", "content": "x"}
    start: dict[str, Any] = (
        {"prompt": "x", "messages": [message], "model": server.model, "max_tokens": 2}
        if valid
        else {}
    )
    if valid and path == "/fill":
        start = {"text": "x ___"}
    body = json.dumps({**start, **fields}).encode(errors="replace")
    answer = http.post(path, content=body, headers=JSON)
    if answer.status_code != 200:
        check(answer, 400, 404)


def test_oversized_bodies(http: httpx.Client, server: Served) -> None:
    check(http.post(PATHS[0], content=b" " * (MAX_BODY + 1), headers=JSON), 413)
    check(http.post(PATHS[0], content=b" " * MAX_BODY, headers=JSON), 400)
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    # Nothing of the body is read before the answer.
    found, _ = exchange(server, head + b"Content-Length: 99999999999\r\n\r\n")
    assert found.startswith(b"HTTP/1.1 413 ")
    chunk = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    found, _ = exchange(server, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 5)
    assert found.startswith(b"HTTP/1.1 413 ")


def test_slow_clients(server: Served) -> None:
    head = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    for parts in ((), (b"POST /gen",), (*(b"GET / HTTP/1.1\r\n", *(b"X-A: b\r\n",) * 4),)):
        found, seconds = exchange(server, *parts, wait=PATIENCE / 6)
        assert found == b""
        assert PATIENCE * 0.9 <= seconds < PATIENCE + 5
    # Answered without its body, of which a byte comes and then nothing.
    answered = head.replace(b"/generate", b"/nowhere") + b"Content-Length: 30\r\n\r\n"
    found, seconds = exchange(server, answered, b"{", wait=PATIENCE / 5)
    assert found.startswith(b"HTTP/1.1 404 ")
    assert seconds < PATIENCE + 3
    found, seconds = exchange(server, head + b"Content-Length: 30\r\n\r\n{")
    assert found.startswith(b"HTTP/1.1 408 ")
    assert seconds < PATIENCE + 5


def test_pages_of_strangers_get_nothing(http: httpx.Client) -> None:
    stranger = {"Origin": "https://evil.example"}
    asked = {"Access-Control-Request-Method": "POST", **stranger}
    answer = http.options("/v1/completions", headers=asked)
    check(answer, 405)
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""):
        for sent, status in (({}, 415), (stranger, 403)):
            headers = {**sent, "Content-Type": kind}
            answer = http.post("/generate", content=b"{}", headers=headers)
            check(answer, status)
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_paths_and_methods(http: httpx.Client) -> None:
    for path in ("/docs", "/openapi.json", "/v1", "/../../etc/passwd", "/v1/embeddings"):
        check(http.get(path), 404)
    check(http.get("/v1/completions"), 405)
    check(http.post("/", json={}), 405)


def test_headers_of_security(http: httpx.Client) -> None:
    for path in ("/", "/health", "/nowhere"):
        headers = http.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "server" not in headers
        assert "unsafe" not in headers["content-security-policy"]


def test_no_http_at_all(server: Served) -> None:
    for line in (b"\x16\x03\x01\x02\x00\x01\x00\n\n", b"GET / HTTP/9\r\n\r\n", b"A" * 100_000):
        found, _ = exchange(server, line)
        assert found.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_nobody_decodes_for_clients_that_are_gone(
    http: httpx.Client, server: Served, path: str
) -> None:
    body = json.dumps({"model": server.model, **LONG} if "v1" in path else LONG).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection(("127.0.0.1", server.port)) as line:
        line.sendall(head + body)
        deadline = time.monotonic() + 20
        while load(http) == 0:
            assert time.monotonic() < deadline
    started = time.monotonic()
    while load(http) > 0:
        assert time.monotonic() < started + 5
