"""Signals at the n-th call that changes the disk: right before it, or right after it.

A process is forked, the functions that change names, contents or permissions of files are wrapped
in it, and one of them raises a signal in its own process. What Python can do between two such calls
changes nothing on the disk, so that these are all the moments at which an end may matter.
"""

import builtins
import fcntl
import functools
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import qdc.artifact.exchange
import qdc.disk
from qdc import stopping

NAMES = ("mkdir", "rename", "replace", "unlink", "remove", "rmdir", "chmod", "fsync", "ftruncate",
         "pwrite")  # fmt: skip
FAILED = 99
"""Exit code of what ended in a traceback."""


@dataclass(frozen=True)
class Moment:
    """When a signal comes."""

    call: int
    """Number of the call, from 1; 0 for never."""
    number: int = signal.SIGKILL
    after: bool = False

    def __str__(self) -> str:
        """``SIGTERM before call 12``."""
        side = "after" if self.after else "before"
        return f"{signal.Signals(self.number).name} {side} call {self.call}"


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """Its exit code, or the negative number of the signal that killed it."""
    calls: int
    """Calls that were counted; of a process that came to its end."""
    errors: str
    """What it wrote to stderr."""


class _Counter:
    def __init__(self, moment: Moment) -> None:
        self.moment, self.calls = moment, 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def counted(*arguments: Any, **options: Any) -> Any:
            if not _writes(function, arguments, options):
                return function(*arguments, **options)
            self.calls += 1
            here = self.calls == self.moment.call
            if here and not self.moment.after:
                signal.raise_signal(self.moment.number)
            found = function(*arguments, **options)
            if here and self.moment.after:
                signal.raise_signal(self.moment.number)
            return found

        return counted


def _writes(function: Callable[..., Any], arguments: tuple[Any, ...], options: Any) -> bool:
    """Whether a call of ``open`` is for writing; all other functions write."""
    if function is OPEN:
        mode = arguments[1] if len(arguments) > 1 else options.get("mode", "r")
        return isinstance(mode, str) and any(letter in mode for letter in "wax+")
    if function is OS_OPEN:
        return bool(arguments[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR))
    return True


OPEN, OS_OPEN = builtins.open, os.open


def _install(counter: _Counter) -> None:
    """Wrap the functions of this process, which is a fork and will not unwrap them."""
    for name in NAMES:
        setattr(os, name, counter.wrap(getattr(os, name)))
    vars(os)["open"] = counter.wrap(OS_OPEN)
    vars(io)["open"] = vars(builtins)["open"] = counter.wrap(OPEN)
    vars(fcntl)["flock"] = counter.wrap(fcntl.flock)
    vars(qdc.disk)["save_file"] = counter.wrap(vars(qdc.disk)["save_file"])
    exchange = vars(qdc.artifact.exchange)
    exchange["exchange"] = counter.wrap(exchange["exchange"])


def without_exchange() -> None:
    """Let this process meet a file system that cannot let two folders change places."""
    vars(qdc.artifact.exchange)["exchange"] = lambda first, second: False


def run_until(moment: Moment, work: Callable[[], int], log: Path) -> Ended:
    """Do some work in a forked process, with the handlers of the command line.

    Args:
        moment: when the signal comes.
        work: returns an exit code.
        log: a file for what the process writes, and its calls.
    """
    child = os.fork()
    if child == 0:
        _live(moment, work, log)
    _, status = os.waitpid(child, 0)
    counted = log.with_suffix(".calls")
    calls = int(counted.read_text()) if counted.exists() else 0
    counted.unlink(missing_ok=True)
    return Ended(os.waitstatus_to_exitcode(status), calls, log.read_text("utf-8", "replace"))


def _live(moment: Moment, work: Callable[[], int], log: Path) -> None:
    """The life of the forked process: it does not return."""
    code = FAILED
    try:
        handle = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        sys.stdout = OPEN(1, "w", closefd=False)
        sys.stderr = OPEN(2, "w", closefd=False)
        stopping.install()
        counter = _Counter(moment)
        _install(counter)
        try:
            code = work()
        except (KeyboardInterrupt, stopping.Terminated):
            code = stopping.exit_code()
        sys.stdout.flush()
        with OPEN(log.with_suffix(".calls"), "w") as file:
            file.write(str(counter.calls))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)
