"""Show on stderr what runs: a bar and a line a process on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from qdc.comparing.result import Result
from qdc.comparing.runner import Job, Listener
from qdc.comparing.statistics import rise

NAME = 46
"""Letters of a job's name on a line that also has a bar."""


class Display(Listener):
    """Prints a line for each job that ends, and how long the others will take."""

    def __init__(self, total: int, processes: int, bar: Progress, console: Console) -> None:
        """``total`` jobs, so many at a time."""
        self.total, self.processes, self.bar, self.console = total, processes, bar, console
        self.ended, self.spent = 0, 0.0
        self.whole = bar.add_task("all", total=total, left="")
        self.tasks: dict[str, tuple[TaskID, float]] = {}
        self.lock = Lock()

    def started(self, job: Job) -> None:
        """Add a line."""
        with self.lock:
            task = self.bar.add_task(_short(job.path), total=None, left="starts")
            self.tasks[job.path] = task, time.monotonic()

    def stepped(self, job: Job, what: str, done: int, total: int) -> None:
        """Move its bar."""
        with self.lock:
            if job.path in self.tasks:
                task, _ = self.tasks[job.path]
                self.bar.update(task, completed=done, total=total, left=what)

    def done(self, job: Job, result: Result) -> None:
        """Say what it took, and what it lost."""
        cost = result.cost
        text = f"{cost.seconds:.1f} s, {cost.processor_seconds:.1f} processor seconds"
        if result.candidate:
            ratio = result.candidate[len(result.candidate) // 2].ratio
            text += f", rise {rise(result, ratio).mean:+.4f}"
        self._end(job, f"done    {job.path}   {text}", "")

    def failed(self, job: Job, error: str) -> None:
        """Say what the error comes to; the table has all of it."""
        first, *more = error.splitlines()
        said = f"{first}: {more[-1]}" if more and first.startswith("exit status") else first
        self._end(job, f"failed  {job.path}: {said}", "red")

    def _end(self, job: Job, text: str, style: str) -> None:
        with self.lock:
            self.ended += 1
            found = self.tasks.pop(job.path, None)
            if found is not None:
                task, began = found
                self.spent += time.monotonic() - began
                self.bar.remove_task(task)
            left = self._left()
            self.bar.update(self.whole, completed=self.ended, left=left)
            count = f"{self.ended:>{len(str(self.total))}}/{self.total}"
            more = f"   {left}" if left and not self.console.is_terminal else ""
            line = Text(f"{count}  {text}{more}", style=style)
            self.console.print(line, soft_wrap=True)

    def _left(self) -> str:
        """How long the rest will take, if it takes as long as what is done."""
        left = self.total - self.ended
        if not left:
            return ""
        seconds = self.spent / self.ended * left / min(self.processes, left)
        length = f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
        return f"about {length} left"


@contextmanager
def display(total: int, processes: int) -> Iterator[Display]:
    """Show so many jobs."""
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(20), MofNCompleteColumn(),
        TextColumn("{task.fields[left]}", markup=False),
    )  # fmt: skip
    shown = sys.stderr.isatty()
    with Progress(*columns, console=console, disable=not shown, transient=True) as bar:
        yield Display(total, processes, bar, bar.console)


def _short(name: str) -> str:
    return name if len(name) <= NAME else f"{name[: NAME - 3]}..."
