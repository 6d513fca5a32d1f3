"""Connections that do not wait for ever.

Neither for the head of a request, nor for the rest of a body that was answered without it, nor for
a client that does not read. And that do not break off in front of a client that still sends: what
arrives at a closed socket makes the system reset the connection, and the answer is lost with it. So
an answer that ends a connection is followed by the end of our own half; what comes is read and
dropped until the client closes its half too (RFC 9112, section 9.6).
"""

import asyncio
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

DROPPED = 64 << 20
"""Bytes of a body that are read for nothing, so that its sender comes to read the answer."""


class _Lingering:
    """A transport that closes our half first, where the other one still sends."""

    def __init__(
        self, transport: asyncio.Transport, conn: h11.Connection, begun: Callable[[], None]
    ) -> None:
        self._transport, self._conn, self._begun = transport, conn, begun
        self.lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """Whether no more is written."""
        return self.lingers or self._transport.is_closing()

    def close(self) -> None:
        """End our half if a request is under way; the second call ends both."""
        sends = self._conn.their_state in (h11.SEND_BODY, h11.ERROR)
        if self.lingers or not sends or self._transport.is_closing():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
        except OSError:  # the other one is gone already
            self._transport.close()
            return
        self.lingers = True
        self._transport.resume_reading()
        self._begun()


def patient(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol with this many seconds; alone it has some between requests only."""

    class Patient(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None
        _dropped = 0

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            self._lingering = _Lingering(transport, self.conn, self._expect_head)
            super().connection_made(self._lingering)  # type: ignore[arg-type]
            transport.set_write_buffer_limits(high=0)  # whatever is not taken, counts as a stall
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            if self._lingering.lingers:
                self._drop(data)
                return
            super().data_received(data)
            their, ours = self.conn.their_state, self.conn.our_state
            # Bytes of a body that nobody reads have ended uvicorn's wait for the next request.
            unread = their is h11.SEND_BODY and ours is h11.DONE
            if their is h11.IDLE or unread or self._lingering.lingers:
                self._expect_head()
            else:
                self._forget_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            self._forget_stall()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self._stalled or self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._forget_stall()

        def _expect_head(self) -> None:
            """More bytes of a head do not buy more time."""
            self._head = self._head or self.loop.call_later(seconds, self.transport.abort)

        def _drop(self, data: bytes) -> None:
            """More bytes buy no more time here either."""
            self._dropped += len(data)
            if self._dropped > DROPPED:
                self.transport.abort()

        def _forget_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _forget_stall(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

    return Patient
