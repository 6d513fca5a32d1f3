"""What is checked of every request before anything reads it."""

from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qdc.serve.clients import Keys
from qdc.serve.hosts import Place, parse_place
from qdc.serve.origins import is_foreign
from qdc.serve.refusals import (
    Refused,
    foreign_page,
    malformed_host,
    no_such_key,
    unknown_host,
)

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
"""Sent with every response that does not set its own."""

OPEN = frozenset((("GET", "/"), ("GET", "/health")))
"""What needs no key: the page, which asks for one, and whether the server is alive."""

CLIENT = "client"
"""In the state of a request: as whose it is queued."""


class Guard:
    """Refuses strangers and sets the headers of security.

    A page of a stranger can let its own name point at this machine (DNS rebinding); its requests
    carry that name. Addresses and ``localhost`` need no name server, so they are safe.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str], keys: Keys) -> None:
        """Pass requests for these names on, besides ``localhost`` and addresses.

        Args:
            app: what answers.
            hosts: names, of which ``*`` is any.
            keys: of which a request must have one, if there are any.
        """
        self._app, self._keys = app, keys
        self._hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request, and pass it on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            scope.setdefault("state", {})[CLIENT] = self._check(scope)
        except Refused as refusal:
            response = JSONResponse(refusal.body, refusal.status, refusal.headers)
            await response(scope, receive, send_with_headers)
        else:
            await self._app(scope, receive, send_with_headers)

    def _check(self, scope: Scope) -> str:
        """As whose a request is queued. Raises ``Refused``."""
        headers = Headers(scope=scope)
        host = self._host(headers)
        if is_foreign(scope["method"], headers, host):
            raise foreign_page()
        given = headers.getlist("authorization")
        owner = self._keys.owner(given[0]) if len(given) == 1 else None
        if self._keys and owner is None and (scope["method"], scope["path"]) not in OPEN:
            raise no_such_key(given=bool(given))
        address = scope["client"][0] if scope.get("client") else ""
        return self._keys.client(owner, address)

    def _host(self, headers: Headers) -> Place:
        """Where a request goes; h11 has refused one of HTTP/1.1 without ``Host`` or with two.

        Raises ``Refused``.
        """
        given = headers.getlist("host")
        if not "".join(given):
            raise unknown_host()  # of HTTP/1.0, or empty
        place = parse_place(given[0]) if len(given) == 1 else None
        if place is None:
            raise malformed_host()
        if not ("*" in self._hosts or place.name in self._hosts or place.is_address):
            raise unknown_host()
        return place
