"""The server: a socket, the event loop, and how it stops."""

import asyncio
import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from qdc.errors import QdcError
from qdc.serve.connection import patient
from qdc.serve.engine import Engine
from qdc.serve.limits import Limits

SLACK = 2.0
"""Seconds for connections to close after the model has stopped."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port, 0 for any; nothing listens yet. Raises ``QdcError`` if that is impossible."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise _cannot(host, port, error) from error
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise _cannot(host, port, error) from error
    return taken


def url(taken: socket.socket) -> str:
    """Where a browser finds the server."""
    host, port = taken.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: ASGIApp,
    engine: Engine,
    taken: socket.socket,
    limits: Limits,
    ready: Callable[[], None],
) -> None:
    """Answer requests until SIGINT or SIGTERM, then stop in order.

    Args:
        app: the application.
        engine: what it queues tickets at; it is closed here.
        taken: of ``bind``.
        limits: patience, grace and connections.
        ready: called when requests are taken.
    """
    config = uvicorn.Config(
        app,
        http=patient(limits.patience),
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=round(limits.grace + SLACK),
    )
    asyncio.run(_Server(config, engine, limits, ready).serve(sockets=[taken]))


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, engine: Engine, limits: Limits, ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._engine, self._limits, self._ready = engine, limits, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what waits, let what runs end, for a while."""
        self._engine.close()
        timer = asyncio.get_running_loop().call_later(self._limits.grace, self._engine.abort)
        await super().shutdown(sockets)
        timer.cancel()
        self._engine.abort()
        self._engine.join(SLACK)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal, and be done with it: a server that was told to stop has not failed."""
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._stop) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """The second SIGINT waits for nobody."""
        self.handle_exit(number, frame)


def _cannot(host: str, port: int, error: Exception) -> QdcError:
    reason = getattr(error, "strerror", None) or "no such name"
    return QdcError(
        f"cannot listen on {host} port {port}: {reason.lower()}",
        help="take another --port (0 finds a free one) or --host",
    )
