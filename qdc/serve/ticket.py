"""One request between the thread of the event loop and the thread of the model."""

import asyncio
from collections.abc import Collection, Hashable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from qdc.runtime.decoding.options import DecodeOptions
from qdc.serve.finaltext import FinalText
from qdc.serve.gaps import GappedText
from qdc.serve.refusals import Refused

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class AnswerProgress:
    """The state of an answer after a step."""

    tokens: list[int]
    """Of the answer; the mask token, or a draft, where nothing is decided."""
    masked: list[bool]
    """Not decided yet."""
    step: int
    steps: int | None
    """In all, where that is known before the end."""
    forwards: int
    seconds: float
    """Since the model began."""


@dataclass(frozen=True)
class Outcome:
    """How an answer ended."""

    finish: Finish
    completion_tokens: int


class Ticket:
    """A text, what is asked for, and what became of it.

    The model's thread writes ``progress``, ``outcome``, ``refusal`` and what subclasses have, and
    wakes the other; only the newest state is kept, so a slow reader costs no memory.
    """

    gaps: list[bool] | None = None
    """Which tokens of the text are filled; without them it is answered."""

    def __init__(self, prompt: list[int], options: DecodeOptions, client: str) -> None:
        """Make a ticket of the running event loop."""
        self.prompt, self.options, self.client = prompt, options, client
        self.shape: Hashable = len(prompt), options.model_copy(update={"seed": 0})
        """What tickets that are decoded together have in common."""
        self.width = options.length
        """Last tokens of a state that a reader is shown."""
        self.progress: AnswerProgress | None = None
        self.outcome: Outcome | None = None
        self.refusal: Refused | None = None
        self.cancelled = False
        self._loop, self._changed = asyncio.get_running_loop(), asyncio.Event()

    @property
    def is_open(self) -> bool:
        """Somebody waits for more."""
        return not (self.cancelled or self.outcome or self.refusal)

    async def change(self) -> None:
        """Wait for the next news; what came since the last call counts. Raises ``Refused``."""
        await self._changed.wait()
        self._changed.clear()
        if self.refusal is not None:
            raise self.refusal

    async def end(self) -> Outcome:
        """Wait for the end. Raises ``Refused``."""
        while self.outcome is None:
            await self.change()
        return self.outcome

    def cancel(self) -> None:
        """Nobody waits for it any more."""
        self.cancelled = True

    def advance(self, progress: AnswerProgress) -> None:
        """Take a step's state."""
        self.progress = progress
        self.wake()

    def finish(self, found: list[int]) -> None:
        """Take all that was written."""
        raise NotImplementedError

    def refuse(self, refusal: Refused) -> None:
        """End without a result."""
        self.refusal = refusal
        self.wake()

    def wake(self) -> None:
        """Tell the event loop; it may be closed by now."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._changed.set)


class AnswerTicket(Ticket):
    """A prompt that is answered; ``final`` is the text of the answer as it grows."""

    def __init__(
        self,
        prompt: list[int],
        options: DecodeOptions,
        final: FinalText,
        ends: Collection[int] = (),
        client: str = "",
    ) -> None:
        """Make a ticket of the running event loop."""
        super().__init__(prompt, options, client)
        self.final = final
        self._ends = frozenset(ends)

    def advance(self, progress: AnswerProgress) -> None:
        """Take a step's state; an answer whose end is decided ends here."""
        self.progress = progress
        place = next((n for n, open_ in enumerate(progress.masked) if open_), len(progress.masked))
        prefix = progress.tokens[:place]
        end = next((n for n, token in enumerate(prefix) if token in self._ends), None)
        if end is not None or place == len(progress.tokens):
            self.finish(prefix if end is None else prefix[:end])
            return
        self.final.feed(prefix)
        if self.final.stopped:
            self._end("stop")
        self.wake()

    def finish(self, found: list[int]) -> None:
        """Take the whole answer, without its end token."""
        self.final.feed(found, last=True)
        short = self.final.stopped or len(found) < self.options.length
        self._end("stop" if short else "length")
        self.wake()

    def _end(self, finish: Finish) -> None:
        self.outcome = Outcome(finish, self.final.count)


class FillTicket(Ticket):
    """A text of which gaps are filled; a state of it is that of the whole text."""

    def __init__(self, text: GappedText, options: DecodeOptions, client: str = "") -> None:
        """Make a ticket of the running event loop."""
        super().__init__(text.tokens, options, client)
        self.text, self.gaps, self.width = text, text.gaps, len(text.tokens)
        self.shape = "fill", self.shape
        self.filled: list[int] = []
        """What stands in the gaps, once they are filled."""

    def finish(self, found: list[int]) -> None:
        """Take what stands in the gaps."""
        self.filled = found
        self.outcome = Outcome("length", len(found))
        self.wake()
