"""What is checked of every request before anything reads it."""

import ipaddress
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qdc.serve.refusals import Refused

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


class Guard:
    """Refuses names of strangers and sets the headers of security.

    A page of a stranger can let its own name point at this machine (DNS rebinding); its requests
    carry that name. Addresses and ``localhost`` need no name server, so they are safe.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Pass requests for these names on, besides ``localhost`` and addresses."""
        self._app = app
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

        host = Headers(scope=scope).get("host", "")
        if self._knows(host):
            await self._app(scope, receive, send_with_headers)
            return
        refusal = Refused(
            421,
            "this server does not answer under that name; ask for localhost or an address, or "
            "start it with --allow-host",
            code="unknown_host",
        )
        response = JSONResponse(refusal.body, refusal.status, {"Connection": "close"})
        await response(scope, receive, send_with_headers)

    def _knows(self, host: str) -> bool:
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        return "*" in self._hosts or name in self._hosts or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
