"""Signals that ask a process to end, and the moments in which they wait.

The command line calls ``install``. A handler notes the signal, and raises at once: a compile that
is killed loses nothing, so one that is told to stop may stop anywhere. What is raised in a handler
can be lost, as in a ``__del__``; the note stays, and ``check`` raises again at the next step. Where
names on the disk change places, ``undisturbed`` makes signals wait, whoever handles them.
"""

import contextlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 5.0
"""Seconds that a process may take to clean up; a signal that comes later ends it at once."""


class Interrupted(KeyboardInterrupt):
    """SIGINT was received."""


class Terminated(SystemExit):
    """SIGTERM was received. Whoever lets ``sys.exit`` through lets it through."""


@dataclass
class _Asked:
    """What this process was told."""

    installed: bool = False
    number: int = 0
    """The first signal, 0 if there was none."""
    since: float = 0.0
    """When it came, by ``time.monotonic``."""
    flying: "weakref.ref[BaseException] | None" = None
    """What was raised for it, as long as somebody has it."""


_asked = _Asked()


def install() -> None:
    """Handle the signals of this process; those that it was started to ignore stay ignored."""
    _asked.installed, _asked.number, _asked.flying = True, 0, None
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _ask)


def _ask(number: int, frame: FrameType | None) -> None:
    """Note the signal and raise, unless what was raised before is still on its way."""
    if not _asked.number:
        _asked.number, _asked.since = number, time.monotonic()
    elif _asked.flying is not None and _asked.flying() is not None:
        if time.monotonic() - _asked.since > GRACE:
            os._exit(exit_code())
        return
    raise _raised()


def _raised() -> BaseException:
    error: BaseException
    interrupted = _asked.number == signal.SIGINT
    error = Interrupted() if interrupted else Terminated(exit_code())
    _asked.flying = weakref.ref(error)
    return error


def check() -> None:
    """Raise if this process was told to end: called between steps that may take long.

    Raises:
        KeyboardInterrupt: SIGINT has come.
        SystemExit: SIGTERM has come.
    """
    if _asked.number:
        raise _raised()


def exit_code() -> int:
    """128 and the number of the signal that has come."""
    return 128 + (_asked.number or signal.SIGINT)


def is_stop(error: BaseException) -> bool:
    """Whether an error is a signal's, and not raised by code that only says so."""
    if isinstance(error, Terminated):
        return True
    return isinstance(error, KeyboardInterrupt) and bool(_asked.number or not _asked.installed)


def last_words(code: int) -> None:
    """From now on a signal raises nothing, and ends this process if it takes too long to end.

    What was raised for the first one is let go of when it has been caught, and another one would
    raise anew where nobody catches it.
    """
    if _asked.installed:
        _handle(lambda: os._exit(code) if time.monotonic() - _asked.since > GRACE else None)


def end_at_once(code: int) -> None:
    """From now on a signal ends this process without a word: all is done, and ``code`` stands."""
    _handle(lambda: os._exit(code))


def _handle(answer: Callable[[], None]) -> None:
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda number, frame: answer())


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals wait until the block is left; it should take moments.

    They come to whoever has handled them before. In other threads than the first nothing is done:
    Python handles signals in the first one alone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []
    # None is a handler that is not Python's: it could not be put back.
    found: dict[int, Any] = {number: signal.getsignal(number) for number in SIGNALS}
    before = {n: h for n, h in found.items() if h is not None and h is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: waiting.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
