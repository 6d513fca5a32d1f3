"""Connections that do not wait for ever: for the head of a request, and for a client that reads."""

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
            self._expect_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.conn.their_state is h11.IDLE:
                self._expect_head()
            else:
                self._head = _cancel(self._head)

        def connection_lost(self, exc: Exception | None) -> None:
            self._head, self._stalled = _cancel(self._head), _cancel(self._stalled)
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._stalled = self._stalled or self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._stalled = _cancel(self._stalled)

        def _expect_head(self) -> None:
            """More bytes of a head do not buy more time."""
            self._head = self._head or self.loop.call_later(seconds, self.transport.abort)

    return Patient


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
