"""The bench that attacks a server, for real: each kind a few times, and what it takes for wrong."""

import json

import pytest

from bench.requests.kinds import KINDS
from bench.requests.sending import attack, fault
from tests.serve.conftest import Served

EACH = 8


@pytest.mark.parametrize("kind", KINDS)
def test_each_request_gets_the_answer_that_is_due(locked: Served, kind: str) -> None:
    found = [attack(locked.port, kind, number, seed=1) for number in range(EACH)]
    assert [wrong for _, _, wrong in found] == [""] * EACH
    assert (0 in {status for status, *_ in found}) == (kind == "clients that leave")


@pytest.mark.parametrize(
    ("status", "error", "wrong"),
    [
        (500, {"type": "server_error"}, "status 500, not one of"),
        (400, {"type": "server_error"}, "of another kind"),
        (400, {"message": "x" * 2000}, "of another form"),
        (400, {"message": "Traceback (most recent call last)"}, "of another kind"),
        (400, {"more": 1}, "of another form"),
        (400, {}, ""),
    ],
)
def test_what_is_wrong_is_told(status: int, error: dict[str, object], wrong: str) -> None:
    usual = {"message": "no", "type": "invalid_request_error", "param": None, "code": None}
    body = json.dumps({"error": {**usual, **error}}).encode()
    found = fault(status, b"HTTP/1.1 400 Bad Request\r\n\r\n" + body, frozenset((400,)))
    assert wrong in found
    assert bool(found) == bool(wrong)
    assert "no error in OpenAI's form" in fault(400, b"HTTP/1.1 400\r\n\r\noops", frozenset((400,)))
