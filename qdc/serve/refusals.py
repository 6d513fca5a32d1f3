"""Errors as clients of the OpenAI protocol read them."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from qdc.errors import QdcError

LAST = frozenset((408, 413, 421))
"""Statuses after which the connection is of no use."""


class Refused(Exception):
    """A request that gets an error and no answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        wait: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Keep the parts.

        Args:
            status: of HTTP.
            message: what is wrong, and what to do instead.
            code: a short name that programs may test.
            param: the field of the request that is wrong.
            wait: seconds after which trying again makes sense.
            headers: sent beside it.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.wait = wait
        self._headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {
            "error": {
                "message": self.message,
                "type": _kind(self.status),
                "param": self.param,
                "code": self.code,
            }
        }

    @property
    def headers(self) -> dict[str, str]:
        """What is sent beside it; where the connection ends, the rest of the body is not read."""
        found = {} if self.wait is None else {"Retry-After": str(self.wait)}
        ends = {"Connection": "close"} if self.status in LAST else {}
        return {**self._headers, **found, **ends}


def from_error(error: QdcError) -> Refused:
    """Tell a client what the decoding loop says of its request."""
    parts = (error.what, *error.where, error.help)
    return Refused(400, "; ".join(part for part in parts if part), code=error.code)


def from_validation(error: ValidationError) -> Refused:
    """Name the first field that is wrong. What the client sent is not repeated."""
    problem = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    text = str(problem["msg"]).removeprefix("Value error, ")
    text = f"{text[:1].lower()}{text[1:]}"
    more = error.error_count() - 1
    tail = f" (and {more} more)" if more else ""
    message = f"{place}: {text}{tail}" if place else f"{text}{tail}"
    return Refused(400, message, param=place or None, code="invalid_request")


def queue_is_full(wait: int) -> Refused:
    """Tell a client to come back."""
    return Refused(429, "too many requests are waiting, try again", code="queue_full", wait=wait)


def client_queue_is_full(most: int, wait: int) -> Refused:
    """Tell a client that it has too much here itself."""
    return Refused(
        429,
        f"{most} of your own requests are waiting, and no client may have more; try again",
        code="client_queue_full",
        wait=wait,
    )


def unknown_host() -> Refused:
    """Refuse a name that a stranger may have pointed here."""
    return Refused(
        421,
        "this server does not answer under that name; ask for localhost or an address, or "
        "start it with --allow-host",
        code="unknown_host",
    )


def malformed_host() -> Refused:
    """Refuse a ``Host`` that is neither name nor address."""
    return Refused(
        400, "the header Host is no name or address, with or without a port", code="malformed_host"
    )


def foreign_page() -> Refused:
    """Refuse what the page of another site sends."""
    return Refused(
        403,
        "the page of another site sent this, by its Origin or Sec-Fetch-Site; only the page of "
        "this server may, and programs that are no browsers",
        code="foreign_origin",
    )


def no_such_key(*, given: bool) -> Refused:
    """Refuse whoever has no key, as OpenAI does."""
    return Refused(
        401,
        f"{'the key is not one of this server' if given else 'this server asks for a key'}; "
        "send it as Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": 'Bearer realm="qdc"'},
    )


def broken_model(problem: str, remedy: str) -> Refused:
    """Tell a client that no request is at fault, and whoever runs the server what to do."""
    return Refused(500, f"{problem}; the fault is the model's: {remedy}", code="broken_model")


def stopping() -> Refused:
    """Tell a client that no answer will come."""
    return Refused(503, "the server is stopping", code="stopping", wait=5)


def internal() -> Refused:
    """Tell a client that it made no mistake, and no more: details are in the server's log."""
    return Refused(500, "the server failed; its log says why", code="internal")


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
