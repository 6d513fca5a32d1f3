"""Errors as clients of the OpenAI protocol read them."""

from typing import Any

from pydantic import ValidationError

from qdc.errors import QdcError


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
    ) -> None:
        """Keep the parts.

        Args:
            status: of HTTP.
            message: what is wrong, and what to do instead.
            code: a short name that programs may test.
            param: the field of the request that is wrong.
            wait: seconds after which trying again makes sense.
        """
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.wait = wait

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
        """What is sent beside it; after 408 and 413 the rest of the body is not read."""
        found = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return {**found, "Connection": "close"} if self.status in (408, 413) else found


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
