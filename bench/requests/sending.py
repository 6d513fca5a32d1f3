"""Requests on a socket, byte for byte, and what is wrong with their answers."""

import json
import re
import socket
import threading
import time
from random import Random

from .kinds import KEYS, KINDS, request, sound

PATIENCE = 120
"""Seconds after which no answer is expected any more."""
LENGTH = 20
"""Tokens of an answer of the flood, each a step."""
HEALTH = b"GET /health HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"


def exchange(port: int, sent: bytes, *, waits: bool = True) -> bytes:
    """Send all, then read all; what was lost on the way comes out as an OSError."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as line:
        line.sendall(sent)
        if not waits:
            return b""
        return b"".join(iter(lambda: line.recv(1 << 16), b""))


def fault(status: int, found: bytes, expected: frozenset[int]) -> str:
    """What is wrong with an answer; empty if nothing is."""
    if status not in expected:
        return f"status {status}, not one of {sorted(expected)}: {found[-300:]!r}"
    body = found.rpartition(b"\r\n\r\n")[2]
    if status == 200 or (status == 400 and body.startswith(b"Invalid HTTP")):
        return ""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError):
        return f"no error in OpenAI's form: {found[-300:]!r}"
    if set(error) != {"message", "type", "param", "code"} or len(error["message"]) > 1000:
        return f"an error of another form: {error}"
    if (status >= 500) != (error["type"] == "server_error") or "Traceback" in error["message"]:
        return f"an error of another kind: {error}"
    return ""


def attack(port: int, kind: str, number: int, seed: int) -> tuple[int, float, str]:
    """Send one request: its status (0 without an answer), seconds, and what is wrong."""
    sent, expected = KINDS[kind](Random(f"{seed} {kind} {number}"))
    begun = time.perf_counter()
    try:
        found = exchange(port, sent, waits=bool(expected))
    except OSError as error:
        return 0, time.perf_counter() - begun, f"no answer: {error}"
    seconds = time.perf_counter() - begun
    if not expected:
        return 0, seconds, ""
    final = re.sub(rb"\AHTTP/1.1 100 .*?\r\n\r\n", b"", found, flags=re.DOTALL)
    status = int(final.split()[1]) if final.startswith(b"HTTP/1.1 ") else 0
    return status, seconds, fault(status, final, expected)


def flood(port: int, requests: int) -> tuple[float, float, int]:
    """Flood by one key; seconds of the flood, and of another's request, and what it waited for."""
    sent = request(
        sound({"max_tokens": LENGTH, "steps": LENGTH}), path="/v1/completions", key=KEYS[0]
    )
    done: list[float] = []

    def one() -> None:
        exchange(port, sent)
        done.append(time.perf_counter())

    threads = [threading.Thread(target=one) for _ in range(requests)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    while b'"waiting":0' in exchange(port, HEALTH):
        time.sleep(0.001)
    asked, before = time.perf_counter(), len(done)
    exchange(port, sent.replace(KEYS[0].encode(), KEYS[1].encode()))
    answered, between = time.perf_counter() - asked, len(done) - before
    for thread in threads:
        thread.join()
    return max(done) - begun, answered, between
