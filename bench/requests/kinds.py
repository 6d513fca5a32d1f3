"""The kinds of requests: what is sent, and which statuses may answer it."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

KEYS = ("first-key", "second-key")
HOT = 7
"""The token for which the model gives NaN."""
MOST_BODY = 16 << 10
Case = tuple[bytes, frozenset[int]]
"""What is sent, and the statuses that may answer it; none where nobody waits for an answer."""
HOSTS = (
    "evil.example", "evil.example:80", "localhost.evil.example", "localhost@evil.example", "[::1",
    "::1", "[::1]x", "[fe80::1%25eth0]", "localhost:", "localhost:0", "localhost:99999", "*", "",
    "localhost:8o", "localhost,localhost", "a b", "a\x01b", "l\xf6calhost", "a" * 5000,
    "2130706433", "127.1", "localhost/..", "-a", "..",
)  # fmt: skip
PAGES = (
    "Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site",
    "Sec-Fetch-Site: same-site", "Origin: http://localhost:1", "Origin: ",
    "Origin: http://localhost\r\nOrigin: http://evil.example", "Sec-Fetch-Site: ",
)  # fmt: skip
WRONG_KEYS = (
    None, "", "Bearer", "Bearer none", "Basic Zmlyc3Qta2V5", "first-key", "Bearer \xff\xfe",
    "Bearer first-key2", f"Bearer {'k' * 9000}",
    "Bearer first-key\r\nAuthorization: Bearer second-key",
)  # fmt: skip
FRAMES = (
    "Content-Length: 2\r\nContent-Length: 3", "Content-Length: -1", "Content-Length: 1e3",
    "Content-Length: 2, 2", "Content-Length: 0x2", "Transfer-Encoding: gzip", "A B: c", ": c",
    "X: \x00", "Transfer-Encoding: chunked, chunked", "Content-Length: " + "9" * 30,
)  # fmt: skip
PATHS = ("/v1/completions", "/v1/chat/completions", "/generate")
FIELDS = (
    "prompt", "messages", "max_tokens", "temperature", "top_p", "seed", "stop", "stream", "steps",
    "stream_options", "n", "strategy", "block", "cache", "threshold", "top_k", "logprobs", "tools",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2**63, 1e308, "", "x", "\x00", "x" * 3000, [], {}, [[]], [None], [-1],
    [2**40], {"a": 1}, "random", "threshold", [{"role": "user", "content": "x"}], [{"role": "x"}],
    [5, 6], 0.5, "9" * 50, ["a"] * 5, {"include_usage": True},
)  # fmt: skip
FITTING: dict[str, tuple[Any, ...]] = {
    "prompt": ("x", "", [5, 6], None), "max_tokens": (1, 3), "temperature": (0, 0.5, 1.5),
    "top_p": (0, 0.5, 1), "seed": (-1, 0, 2**40), "stop": ("", "a", ["a", "b"]), "n": (1,),
    "stream": (True, False), "strategy": ("random", "sequential"), "steps": (1, None),
    "block": (1, 2), "cache": ("none", "prefix"), "top_k": (-1, 0, 5),
}  # fmt: skip


def request(body: bytes, *lines: str, path: str = "/generate", key: str | None = KEYS[0]) -> bytes:
    """A sound request, but for what ``lines`` say; a line stands for the usual one of its name."""
    usual = {
        "Host": "Host: localhost",
        "Content-Type": "Content-Type: application/json",
        "Content-Length": f"Content-Length: {len(body)}",
        "Authorization": f"Authorization: Bearer {key}",
        "Connection": "Connection: close",
    }
    for line in lines:
        usual.pop(line.partition(":")[0], None)
    if any(line.startswith("Transfer-Encoding") for line in lines):
        usual.pop("Content-Length", None)
    head = "\r\n".join([f"POST {path} HTTP/1.1", *usual.values(), *filter(None, lines), "", ""])
    return head.encode("latin-1") + body


def sound(fields: dict[str, Any]) -> bytes:
    """The body of a request for a short answer."""
    return json.dumps({"max_tokens": 2, "prompt": [5, 6], "model": "hot", **fields}).encode()


def hosts(chance: Random) -> Case:
    """Names of strangers, and what is no name."""
    host = chance.choice(HOSTS)
    lines = chance.choice(
        [[f"Host: {host}"], [f"Host: {host}\r\nHost: localhost"], [f"Host: {host}"]]
    )
    return request(sound({}), *lines), frozenset((400, 421))


def pages(chance: Random) -> Case:
    """What pages of other sites send, on any route and of any kind."""
    kind = chance.choice(["application/json", "text/plain", "multipart/form-data"])
    path = chance.choice([*PATHS, "/", "/health", "/v1/models", "/nowhere"])
    lines = (chance.choice(PAGES), f"Content-Type: {kind}")
    return request(sound({}), *lines, path=path), frozenset((403,))


def keys(chance: Random) -> Case:
    """No key, or none of the server's."""
    given = chance.choice(WRONG_KEYS)
    line = "" if given is None else f"Authorization: {given}"
    body = sound({}) if chance.random() < 0.7 else b" " * chance.choice([1 << 20, 4 << 20])
    sent = request(body, line or "Authorization:", path=chance.choice([*PATHS, "/nowhere"]))
    return sent, frozenset((401,))


def bodies(chance: Random) -> Case:
    """Names with two values, bombs, and what is no JSON."""
    depth = chance.choice([101, 4000])
    body = chance.choice(
        [b'{"prompt":"x","prompt":"y"}', b'{"max_tokens":1,"prompt":"x","max_tokens":2}',
         b'{"prompt":"x","user":{"a":1,"a":[]}}', b"[" * depth, b'{"a":' * (depth // 2),
         b'{"prompt":"x","user":' + b"[" * depth + b"]" * depth + b"}", b"", b"\xff", b"nul",
         b'{"prompt":"\\ud800"}', b'{"max_tokens":' + b"9" * 9000 + b"}", b"NaN",
         b"[" + b"{}," * 5000 + b"{}]", b'{"prompt":"x"}{}', b'{"prompt":NaN}'],
    )  # fmt: skip
    return request(body, path=chance.choice(PATHS)), frozenset((400,))


def values(chance: Random) -> Case:
    """Any value in any field, or in half of all one that fits."""
    names = chance.sample(FIELDS, chance.randint(1, 4))
    fields = {name: chance.choice(VALUES) for name in names}
    if chance.random() < 0.5:
        fields = {name: chance.choice(FITTING[name]) for name in names if name in FITTING}
    return request(sound(fields), path=chance.choice(PATHS)), frozenset((200, 400))


def large(chance: Random) -> Case:
    """More than a body may have, by its length or in chunks, with and without a question first."""
    size = chance.choice([MOST_BODY + 1, 1 << 20, 6 << 20])
    lines = ["Expect: 100-continue"] if chance.random() < 0.3 else []
    if chance.random() < 0.5:
        return request(b" " * size, *lines), frozenset((413,))
    part = b"%x\r\n%s\r\n" % (1 << 14, b" " * (1 << 14))
    chunks = part * (size // (1 << 14) + 1) + b"0\r\n\r\n"
    return request(chunks, "Transfer-Encoding: chunked", *lines), frozenset((413,))


def frames(chance: Random) -> Case:
    """Heads that can be read in two ways, or in none."""
    start = chance.choice(
        [b"", b"", b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\n\n", b"A" * 70_000]
    )
    sent = start or request(b"{}", chance.choice(FRAMES))
    return sent, frozenset((400, 413))


def leavers(chance: Random) -> Case:
    """Clients that go away in the middle, of the head, the body or the answer."""
    sent = request(sound({"max_tokens": 30, "stream": True}), path=chance.choice(PATHS[:2]))
    return sent[: chance.randint(1, len(sent))], frozenset()


def not_finite(chance: Random) -> Case:
    """Prompts at which the model overflows."""
    tokens = [chance.randrange(10, 2000) for _ in range(chance.randint(0, 5))]
    tokens.insert(chance.randint(0, len(tokens)), HOT)
    body = sound({"prompt": tokens, "stream": chance.random() < 0.5})
    return request(body, path="/v1/completions"), frozenset((500,))


def decent(chance: Random) -> Case:
    """Sound requests among all that."""
    tokens = [chance.randrange(10, 2000) for _ in range(chance.randint(1, 5))]
    body = sound({"prompt": tokens, "stream": chance.random() < 0.5})
    lines = chance.choice(
        ["", "Origin: http://localhost", "Sec-Fetch-Site: same-origin", "Host: [::1]"]
    )
    return request(body, lines, path="/v1/completions"), frozenset((200,))


KINDS: dict[str, Callable[[Random], Case]] = {
    "hosts": hosts, "pages of other sites": pages, "keys": keys, "bodies": bodies,
    "values": values, "bodies too large": large, "heads": frames, "clients that leave": leavers,
    "NaN": not_finite, "sound": decent,
}  # fmt: skip
