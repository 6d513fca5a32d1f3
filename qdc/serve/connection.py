"""Connections that do not wait for ever.

Neither for the head of a request, nor for the rest of a body that was answered without it, nor for
a client that does not read.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient(seconds: float) -> type[H11Protocol]:
    """Uvicorn's protocol with this many seconds; alone it has some between requests only."""

    class Patient(H11Protocol):
        _head: asyncio.TimerHandle | None = None
        _stalled: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            transport.set_write_buffer_limits(high=0)  # whatever is not taken, counts as a stall
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            their, ours = self.conn.their_state, self.conn.our_state
            # Bytes of a body that nobody reads have ended uvicorn's wait for the next request.
            if their is h11.IDLE or (their is h11.SEND_BODY and ours is h11.DONE):
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

        def _forget_head(self) -> None:
            if self._head is not None:
                self._head.cancel()
                self._head = None

        def _forget_stall(self) -> None:
            if self._stalled is not None:
                self._stalled.cancel()
                self._stalled = None

    return Patient
