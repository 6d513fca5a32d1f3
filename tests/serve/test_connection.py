"""A client that does not read is cut off."""

import asyncio
import socket
import time

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from qdc.serve.connection import patient

BUFFER = 4096
"""Of the system, for each side; it takes a few times as much."""


@pytest.mark.parametrize("parts", [1, 1 << 30])
def test_a_client_that_does_not_read(parts: int) -> None:
    """Whether the application waits for it, or has sent all, which lies in the process."""
    ended = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        """Send as long as somebody is there."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await receive()  # the request
        gone = asyncio.ensure_future(receive())
        for _ in range(parts):
            await send({"type": "http.response.body", "body": b"x" * 49152, "more_body": True})
            await asyncio.sleep(0)
            if gone.done():
                break
        await gone
        ended.set()

    async def test() -> float:
        config = uvicorn.Config(flood, http=patient(0.3), lifespan="off", log_level="warning")
        server = uvicorn.Server(config)
        taken = socket.create_server(("127.0.0.1", 0))
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        server.config.load()
        server.lifespan = config.lifespan_class(config)
        await server.startup(sockets=[taken])
        with socket.socket() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
            line.connect(taken.getsockname())
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            started = time.monotonic()
            await asyncio.wait_for(ended.wait(), 20)
            seconds = time.monotonic() - started
        await server.shutdown(sockets=[taken])
        return seconds

    assert asyncio.run(test()) >= 0.3
