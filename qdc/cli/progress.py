"""How far a command is: a bar on a terminal, else a plain line every half minute; on stderr."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from qdc.units import DetailedProgress, StepProgress, duration

SWITCH = "QDC_PROGRESS"
"""Environment variable that turns all of it off: ``QDC_PROGRESS=off``."""
EVERY = 30.0
"""Seconds between two plain lines."""
DESCRIPTION, BAR = 30, 16
"""Columns of the text in front of the bar, and of the bar: with the rest they fill 80."""
Clock = Callable[[], float]


@dataclass
class Status:
    """What is known of a command that runs."""

    what: str = ""
    done: int = 0
    total: int = 0
    """0 where nobody knows."""
    on: str = ""
    """What is at work right now: a pass, and the layers it works on."""
    left: float | None = None
    """Seconds that were left when ``at`` was; None where nothing is known."""
    at: float = 0.0

    def remaining(self, now: float) -> str:
        """``about 3.4 min left``; nothing where it is unknown, or was too little."""
        if self.left is None or self.left <= now - self.at:
            return ""
        return f"about {duration(self.left - (now - self.at))} left"


class Lines(DetailedProgress):
    """Writes a line each half minute: for logs and pipes."""

    def __init__(self, write: Callable[[str], object], clock: Clock = time.monotonic) -> None:
        """Begin now.

        Args:
            write: takes a line.
            clock: seconds, from any start.
        """
        self.write, self.clock, self.status = write, clock, Status()
        self.began = self.said = clock()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Note how far it is."""
        if what != self.status.what:
            self.status = Status()
        self.status.what, self.status.done, self.status.total = what, done, total

    def working(self, on: str, left: float | None) -> None:
        """Note what is at work."""
        self.status.on, self.status.left, self.status.at = on, left, self.clock()

    def tick(self) -> None:
        """Write a line if it is time for one, and there is something to say."""
        now = self.clock()
        if now - self.said < EVERY or not self.status.what:
            return
        self.said = now
        status = self.status
        count = f": {status.done:,} of {status.total:,}" if status.total else ""
        gone = f"{duration(now - self.began)} gone"
        parts = (f"{status.what}{count}", status.on, gone, status.remaining(now))
        self.write(f"qdc: {', '.join(part for part in parts if part)}")


class Bar(DetailedProgress):
    """Draws a bar for each thing that is done."""

    def __init__(self, bar: Progress) -> None:
        """Draw on ``bar``, which is running."""
        self.bar, self.tasks = bar, dict[str, Task]()
        self.running: Task | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """Draw how far it is; a total of 0 is one that nobody knows."""
        if what not in self.tasks:
            number = self.bar.add_task(what, total=total or None, status=Status())
            self.tasks[what] = next(task for task in self.bar.tasks if task.id == number)
        self.running = self.tasks[what]
        self.bar.update(self.running.id, completed=done, total=total or None)

    def working(self, on: str, left: float | None) -> None:
        """Draw what is at work, and count down from what is left."""
        if self.running is None:
            return
        status = self.running.fields["status"]
        status.left, status.at = left, time.monotonic()
        self.bar.update(self.running.id, description=on)


class _Left(ProgressColumn):
    """The time that is left, counted down between two reports."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["status"].remaining(time.monotonic()))


@contextmanager
def progress(*, shown: bool = True) -> Iterator[StepProgress]:
    """Yield a function ``(what, done, total)``, which is a ``DetailedProgress`` where it is shown.

    Args:
        shown: whether this process shows anything.
    """
    if not shown or os.environ.get(SWITCH) == "off":
        yield lambda what, done, total: None
    elif sys.stderr.isatty():
        bar = Progress(
            TextColumn(f"{{task.description:<{DESCRIPTION}.{DESCRIPTION}}}", markup=False),
            BarColumn(BAR),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _Left(),
            console=Console(stderr=True),
            transient=True,
        )
        with bar:
            yield Bar(bar)
    else:
        lines = Lines(lambda line: print(line, file=sys.stderr, flush=True))
        with _ticking(lines):
            yield lines


@contextmanager
def _ticking(lines: Lines) -> Iterator[None]:
    """Write lines from a thread of its own: what is at work need not report for that."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(EVERY):
            lines.tick()

    thread = threading.Thread(target=run, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
