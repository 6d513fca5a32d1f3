"""Prompts become tokens one after the other, in turns between clients.

The tokenizer is one, and a long text keeps it for a third of a second: whoever sends many of them
must not make others wait for all.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from qdc.serve.fairqueue import FairQueue
from qdc.serve.limits import Limits
from qdc.serve.refusals import client_queue_is_full, queue_is_full

SOON = 1
"""Seconds after which it makes sense to try again: a text takes a fraction of one."""


class Turns:
    """Lets in one at a time; belongs to one event loop."""

    def __init__(self, limits: Limits) -> None:
        """Let as many wait as may wait for the model."""
        self._limits = limits
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()
        self._taken = False

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and keep it. Raises ``Refused`` if too many wait."""
        if self._taken:
            await self._wait(client)
        self._taken = True
        try:
            yield
        finally:
            self._pass_on()

    async def _wait(self, client: str) -> None:
        if len(self._waiting) >= self._limits.queue:
            raise queue_is_full(SOON)
        if self._waiting.count(client) >= self._limits.client_queue:
            raise client_queue_is_full(self._limits.client_queue, SOON)
        mine = asyncio.get_running_loop().create_future()
        self._waiting.push(client, mine)
        try:
            await mine
        except asyncio.CancelledError:
            self._waiting.keep(lambda each: each is not mine)
            if not mine.cancelled():  # the turn had come already
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give the turn to the next, without letting anybody in between."""
        self._taken = False
        for mine in self._waiting.take(1, lambda first, other: False):
            self._taken = True
            mine.set_result(None)
