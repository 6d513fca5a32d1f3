"""A client that does not read is cut off."""

import asyncio
import socket
import time

import uvicorn
from starlette.types import Receive, Scope, Send

from qdc.serve.connection import patient


def test_a_client_that_does_not_read() -> None:
    ended = asyncio.Event()

    async def flood(scope: Scope, receive: Receive, send: Send) -> None:
        """Send without end, as long as somebody is there."""
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.ensure_future(receive())
        await gone  # the request
        gone = asyncio.ensure_future(receive())
        while not gone.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        ended.set()

    async def test() -> float:
        config = uvicorn.Config(flood, http=patient(0.3), lifespan="off", log_level="warning")
        server = uvicorn.Server(config)
        taken = socket.create_server(("127.0.0.1", 0))
        server.config.load()
        server.lifespan = config.lifespan_class(config)
        port = taken.getsockname()[1]
        await server.startup(sockets=[taken])
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            started = time.monotonic()
            await asyncio.wait_for(ended.wait(), 20)
            seconds = time.monotonic() - started
        await server.shutdown(sockets=[taken])
        return seconds

    assert asyncio.run(test()) >= 0.3
