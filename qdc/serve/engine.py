"""The queue, and the one thread that runs the model.

Clients are served in turns, and the requests of one in the order in which they came. With the first
go those that wait behind it and have an equal shape: the same number of prompt tokens and the same
options, seeds aside; texts with gaps go with their own kind. What a row draws follows from its own
seed and positions, so its company changes nothing but the rounding of the model.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence

from qdc.errors import NotFinite, QdcError
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Decoded, Snapshot, Watch
from qdc.serve.fairqueue import FairQueue
from qdc.serve.limits import Limits
from qdc.serve.refusals import (
    broken_model,
    client_queue_is_full,
    from_error,
    internal,
    queue_is_full,
    stopping,
)
from qdc.serve.ticket import AnswerProgress, Ticket

Gaps = Sequence[Sequence[bool]] | None
Run = Callable[[Sequence[Sequence[int]], Gaps, DecodeOptions, Sequence[int], Watch], Decoded]
"""``(texts, gaps, options, one seed a text, watch)``: what decodes a batch.

Texts with gaps are filled, those without (None for the whole batch) are answered.
"""

LONGEST_WAIT = 60
log = logging.getLogger(__name__)


class _Stopped(Exception):
    """Nobody waits for the batch any more."""


class Engine:
    """Takes tickets from any thread and answers them in its own."""

    def __init__(self, run: Run, limits: Limits, remedy: str) -> None:
        """Start the thread. Where the model itself is at fault, ``remedy`` says what to do."""
        self._run, self._limits, self._remedy = run, limits, remedy
        self._ready = threading.Condition()
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._running: list[Ticket] = []
        self._closed = self._aborted = False
        self._seconds = 0.0
        self.batches = 0
        """Batches that were begun."""
        self._thread = threading.Thread(target=self._work, name="qdc-model", daemon=True)
        self._thread.start()

    @property
    def load(self) -> tuple[int, int]:
        """Requests that are decoded, and those that wait."""
        with self._ready:
            return (
                sum(ticket.is_open for ticket in self._running),
                sum(ticket.is_open for ticket in self._waiting),
            )

    @property
    def alive(self) -> bool:
        """Whether requests are taken."""
        return self._thread.is_alive() and not self._closed

    def submit(self, ticket: Ticket) -> None:
        """Queue a request. Raises ``Refused`` if too many wait, or the server stops."""
        with self._ready:
            if self._closed:
                raise stopping()
            self._drop_cancelled()
            if len(self._waiting) >= self._limits.queue:
                raise queue_is_full(self._wait(len(self._waiting)))
            own, most = self._waiting.count(ticket.client), self._limits.client_queue
            if own >= most:
                raise client_queue_is_full(most, self._wait(own * self._waiting.clients))
            self._waiting.push(ticket.client, ticket)
            self._ready.notify()

    def close(self) -> None:
        """Take no more, refuse those that wait, and let the running batch end."""
        with self._ready:
            self._closed = True
            refused = self._waiting.clear()
            self._ready.notify()
        for ticket in refused:
            ticket.refuse(stopping())

    def abort(self) -> None:
        """Close, and end the running batch after its present step."""
        self._aborted = True
        self.close()

    def join(self, seconds: float) -> None:
        """Wait for the thread."""
        self._thread.join(seconds)

    def _wait(self, requests: int) -> int:
        """Seconds until about half of these requests are gone."""
        batches = requests / self._limits.batch / 2
        return max(1, min(LONGEST_WAIT, math.ceil(batches * self._seconds)))

    def _drop_cancelled(self) -> None:
        self._waiting.keep(lambda ticket: ticket.is_open)

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._waiting and not self._closed:
                    self._ready.wait()
                if not self._waiting:
                    return
                self._running = self._take()
            if self._running:
                self._answer(self._running)
            self._running = []

    def _take(self) -> list[Ticket]:
        """The next ticket and its likes."""
        self._drop_cancelled()
        return self._waiting.take(self._limits.batch, lambda a, b: a.shape == b.shape)

    def _answer(self, batch: list[Ticket]) -> None:
        self.batches += 1
        started = time.perf_counter()

        def watch(state: Snapshot) -> None:
            if self._aborted:
                raise _Stopped
            seconds = time.perf_counter() - started
            width = batch[0].width
            tokens, masked = state.tokens[:, -width:], state.masked[:, -width:]
            rows = zip(batch, tokens.tolist(), masked.tolist(), strict=True)
            for ticket, row, open_places in rows:
                if ticket.is_open:
                    ticket.advance(
                        AnswerProgress(
                            row, open_places, state.step, state.steps, state.forwards, seconds
                        )
                    )
            if not any(ticket.is_open for ticket in batch):
                raise _Stopped

        refusal = stopping()
        try:
            prompts = [ticket.prompt for ticket in batch]
            seeds = [ticket.options.seed for ticket in batch]
            gaps = [ticket.gaps for ticket in batch if ticket.gaps is not None] or None
            answers = self._run(prompts, gaps, batch[0].options, seeds, watch).answers
            for ticket, answer in zip(batch, answers, strict=True):
                if ticket.is_open:
                    ticket.finish(answer)
        except _Stopped:
            pass
        except NotFinite as error:
            refusal = broken_model(error.what, self._remedy)
            log.error("%s", refusal.message)
        except QdcError as error:
            refusal = from_error(error)
        except BaseException:  # as tokenizers panics; without this thread nobody is answered
            log.exception("decoding failed")
            refusal = internal()
        for ticket in batch:
            if ticket.is_open:
                ticket.refuse(refusal)
        self._seconds = time.perf_counter() - started
