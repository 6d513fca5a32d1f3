"""Wall clock and processor time of a piece of work, children's included once they have ended."""

import os
import time
from typing import NamedTuple

import torch


class Moment(NamedTuple):
    """A point in time on both clocks, in seconds from some start; differences have a meaning."""

    wall: float
    processor: float


def now() -> Moment:
    """Read both clocks."""
    children = os.times()[2:4]
    return Moment(time.perf_counter(), time.process_time() + sum(children))


class Stopwatch:
    """Times a ``with`` block: ``seconds`` of wall clock, ``processor`` seconds of all threads.

    Other work on the machine lengthens the first and hardly changes the second.
    """

    seconds = processor = 0.0

    def __enter__(self) -> "Stopwatch":
        self._begin = now()
        return self

    def __exit__(self, *raised: object) -> None:
        end = now()
        self.seconds = end.wall - self._begin.wall
        self.processor = end.processor - self._begin.processor

    def note(self) -> str:
        """Both times and the number of torch's threads, for a reader."""
        threads = torch.get_num_threads()
        return f"{self.seconds:.0f} s, {self.processor:.0f} processor seconds, {threads} threads"
