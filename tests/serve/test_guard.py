"""Where a request goes, whose page made it, and whose key it has."""

import json
import socket
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from qdc.cli import run
from qdc.serve.clients import Keys, network, read_keys
from qdc.serve.guard import Guard
from qdc.serve.hosts import Place, parse_place
from qdc.serve.origins import is_foreign
from tests.serve.conftest import Served

POSTING = (
    "/v1/chat/completions",
    "/v1/completions",
    "/generate",
    "/fill",
    "/",
    "/nowhere",
    "/v1/models",
)
EVIL = "https://evil.example"


def answer(served: Served, *lines: str, body: str = "") -> tuple[int, str]:
    """Send a request as it stands; its status and all that came."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as line:
        line.sendall("\r\n".join([*lines, "Connection: close", "", body]).encode("latin-1"))
        found = b"".join(iter(lambda: line.recv(1 << 16), b"")).decode()
    return int(found.split()[1]), found


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:99", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("LOCALHOST", 200),
     ("[0:0::1]", 200), ("[::ffff:127.0.0.1]:1", 200), ("127.0.0.1:65535", 200),
     ("evil.example", 421), ("evil.example:8000", 421), ("localhost.evil.example", 421),
     ("127.0.0.1.evil.example", 421), ("localhost.", 421), ("2130706433", 421), ("127.1", 421),
     ("", 421), ("[::1", 400), ("::1", 400), ("::1]", 400), ("[::1]]", 400), ("[[::1]", 400),
     ("[127.0.0.1]", 400), ("[::1%25lo]", 400), ("[::1]x", 400), ("[::1]x:1", 400), ("[]", 400),
     ("localhost:", 400), ("localhost:0", 400), ("localhost:65536", 400), ("localhost:8o", 400),
     ("localhost:-1", 400), ("localhost:1:2", 400), (":80", 400), ("localhost:٣", 400),
     ("user@localhost", 400), ("user:x@localhost", 400), ("evil.example@127.0.0.1", 400),
     ("localhost/x", 400), ("http://localhost", 400), ("localhost?", 400), ("localhost#", 400),
     ("localhost,evil.example", 400), ("local host", 400), ("local\thost", 400),
     ("localhost\\", 400), ("%6cocalhost", 400), ("l\xf6calhost", 400), ("a..b", 400),
     ("-localhost", 400), (".localhost", 400), ("*", 400), ("a" * 300, 400)],
)  # fmt: skip
def test_hosts(server: Served, host: str, status: int) -> None:
    text = host.encode().decode("latin-1")
    found, whole = answer(server, "GET /v1/models HTTP/1.1", f"Host: {text}")
    assert found == status
    if status != 200:
        code = json.loads(whole.partition("\r\n\r\n")[2])["error"]["code"]
        assert code == ("malformed_host" if status == 400 else "unknown_host")


@pytest.mark.parametrize(
    ("version", "hosts", "status"),
    [("1.1", (), 400), ("1.1", ("localhost", "localhost"), 400), ("1.0", (), 421),
     ("1.0", ("localhost",), 200), ("1.0", ("localhost", "evil.example"), 400),
     ("1.1", ("evil.example", "localhost"), 400)],
)  # fmt: skip
def test_no_host_and_two(server: Served, version: str, hosts: tuple[str, ...], status: int) -> None:
    lines = [f"Host: {host}" for host in hosts]
    assert answer(server, f"GET /v1/models HTTP/{version}", *lines)[0] == status


@given(st.text(max_size=12) | st.from_regex(r"\[?[a-z0-9:.@%-]{0,12}\]?(:[0-9]{0,6})?"))
def test_what_is_a_place_is_read_in_one_way(text: str) -> None:
    found = parse_place(text)
    if found is not None:
        name = f"[{found.name}]" if ":" in found.name else found.name
        port = "" if found.port is None else f":{found.port}"
        assert parse_place(name + port) == found
        assert not set(name) & set("@/\\?#% ,\t")


@pytest.mark.parametrize("path", POSTING)
@pytest.mark.parametrize(
    "sent",
    [{"Origin": EVIL}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"},
     {"Sec-Fetch-Site": "same-site"}, {"Origin": "http://localhost:1"},
     {"Sec-Fetch-Site": "cross-site", "Origin": "OURS"},
     {"Sec-Fetch-Site": "none", "Origin": EVIL}],
)  # fmt: skip
def test_pages_of_others_may_post_nothing(server: Served, path: str, sent: dict[str, str]) -> None:
    """Whatever the route and the kind of the body: neither has been looked at."""
    sent = {name: value.replace("OURS", server.url) for name, value in sent.items()}
    for kind in ("application/json", "text/plain"):
        headers = {**sent, "Content-Type": kind}
        found = httpx.post(server.url + path, content=b"{}", headers=headers)
        assert found.status_code == 403
        assert found.json()["error"]["code"] == "foreign_origin"
    for method in ("PUT", "DELETE", "PATCH", "TRACE"):
        assert httpx.request(method, server.url + path, headers=sent).status_code == 403


def test_our_page_and_programs_may_post(server: Served) -> None:
    body = {"prompt": "x", "max_tokens": 1}
    ours: list[dict[str, str]] = [
        {},
        {"Origin": server.url},
        {"Origin": server.url, "Sec-Fetch-Site": "same-origin"},
        {"Sec-Fetch-Site": "none"},
        {"Origin": "http://localhost", "Host": "localhost"},
        {"Origin": "http://localhost", "Host": "LOCALHOST:80"},
        {"Origin": "https://[::1]", "Host": "[0::1]:443"},
        # Behind a proxy that puts its own name for the server in Host.
        {"Origin": "https://models.example", "Sec-Fetch-Site": "same-origin"},
    ]
    for headers in ours:
        assert httpx.post(f"{server.url}/generate", json=body, headers=headers).status_code == 200
    assert httpx.get(f"{server.url}/v1/models", headers={"Origin": EVIL}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [[("origin", "http://a"), ("origin", "http://a")], [("origin", "")], [("origin", "a")],
     [("sec-fetch-site", "none"), ("sec-fetch-site", "none")], [("sec-fetch-site", "")],
     [("origin", "http://a:81")], [("origin", "ftp://a")], [("origin", "http://a/")],
     [("origin", "https://a")], [("origin", "http://user@a")]],
)  # fmt: skip
def test_odd_origins_are_foreign(headers: list[tuple[str, str]]) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    assert is_foreign("POST", Headers(raw=raw), Place("a", 80))
    assert not is_foreign("GET", Headers(raw=raw), Place("a", 80))


@pytest.mark.parametrize("key", ["of-a-line", "of-a-file", "second", "of-a-variable"])
def test_keys_open(locked: Served, key: str) -> None:
    client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key=key, max_retries=0)
    assert client.models.list().data[0].id == locked.model
    found = client.completions.create(model=locked.model, prompt="x", max_tokens=1)
    assert found.choices[0].finish_reason in ("stop", "length")
    headers = {"Authorization": f"bearer  {key}"}
    assert httpx.get(f"{locked.url}/v1/models", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [(), ("none",), ("Bearer",), ("Bearer of-a-lin",), ("Bearer of-a-line2",),
     ("Basic of-a-line",), ("of-a-line",), ("Bearer of-a-line, Bearer of-a-line",),
     ("Bearer \xe4\xff",), ("Bearer of-a-line", "Bearer of-a-line"), ("Bearer " + "x" * 9000,)],
)  # fmt: skip
def test_nothing_else_opens(locked: Served, sent: tuple[str, ...]) -> None:
    headers: list[tuple[str, str]] = [("Authorization", value) for value in sent]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    for method, path in (
        ("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/generate"), ("POST", "/"),
        ("GET", "/nowhere"), ("GET", "//"), ("OPTIONS", "/generate"), ("POST", "/health"),
    ):  # fmt: skip
        found = httpx.request(method, locked.url + path, headers=raw)
        assert found.status_code == 401, (method, path)
        error = found.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
        assert found.headers["www-authenticate"].startswith("Bearer")
    for path in ("/", "/health"):
        assert httpx.get(locked.url + path, headers=raw).status_code == 200
    with pytest.raises(openai.AuthenticationError, match="not one of this server"):
        openai.OpenAI(base_url=f"{locked.url}/v1", api_key="x", max_retries=0).models.list()


def test_a_large_body_without_a_key_gets_its_answer(locked: Served) -> None:
    found = httpx.post(f"{locked.url}/generate", content=b" " * (8 << 20))
    assert found.status_code == 401


def test_whose_request_it_is() -> None:
    none, one, two = Keys(), Keys(["k"]), Keys(["k", "l"])
    assert (bool(none), bool(one)) == (False, True)
    assert none.owner("Bearer k") is None
    assert none.client(None, "10.0.0.1") == one.client(one.owner("Bearer k"), "10.0.0.1")
    first, second = (two.client(two.owner(f"Bearer {key}"), "10.0.0.1") for key in "kl")
    assert len({first, second, "10.0.0.1"}) == 3
    assert network("2001:db8::1") == network("2001:db8:0:0:ffff::2") != network("2001:db8:0:1::1")
    assert network("::ffff:10.0.0.1") == "10.0.0.1"
    assert network("") == ""


def test_made_up_keys_are_no_clients() -> None:
    """Without keys of the server a header is nothing: it would buy a place in the queue each."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["client"])

    for number in range(3):
        headers = [(b"host", b"localhost"), (b"authorization", b"Bearer %d" % number)]
        scope = {"type": "http", "method": "POST", "path": "/", "headers": headers}
        coroutine = Guard(app, (), Keys())({**scope, "client": ("1.2.3.4", number)}, None, None)  # type: ignore[arg-type]
        with pytest.raises(StopIteration):
            coroutine.send(None)
    assert seen == ["1.2.3.4"] * 3


@pytest.mark.parametrize(
    ("options", "variable", "text"),
    [
        (["--api-key", ""], None, "empty"), (["--api-key", "a b"], None, "other than letters"),
        (["--api-key", "hush\u00e9t"], None, "other than letters"), ([], "", "QDC_API_KEY"),
        (["--api-key-file", "empty"], None, "the file holds no key"),
        (["--api-key-file", "nowhere"], None, "cannot be read: no such file"),
        (["--api-key-file", "binary"], None, "not UTF-8"),
        (["--api-key-file", "."], None, "cannot be read"),
    ],
)  # fmt: skip
def test_keys_that_protect_nothing_are_refused(
    options: list[str], variable: str | None, text: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "empty").write_text(" \n\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    monkeypatch.chdir(tmp_path)
    if variable is not None:
        monkeypatch.setenv("QDC_API_KEY", variable)
    assert run(["serve", "nowhere", "--port", "0", *options]) == 1
    error = capsys.readouterr().err
    assert text in error
    assert "hush" not in error


def test_keys_are_read_from_all_places(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("b\nc\n")
    found = read_keys(["a"], tmp_path / "keys", {"QDC_API_KEY": "d"})
    assert found == ("a", "b", "c", "d")
    assert read_keys([], None, {}) == ()
