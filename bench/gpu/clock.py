"""Time calls on the device, and know when the time for measuring is over.

On a GPU the calls are captured in a CUDA graph, which is replayed between two events: what is
measured is the device's time, without the host's. Each call of a graph should read other weights,
together more than the L2 cache holds, as the layers of a model do.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

Call = Callable[[], object]
REPEATS, QUICK_REPEATS = 5, 2
SHORTEST, QUICK = 0.02, 0.003
"""Seconds of one repeat, at the least; and when many choices are tried."""


class OutOfTime(Exception):
    """The budget is spent: what is left is not measured."""


class Timing(NamedTuple):
    """The median over the repeats."""

    seconds: float
    """Of one call."""
    how: str
    """``graph``, ``eager``, or ``dry run``."""


class Clock:
    """Times calls until the budget is spent."""

    def __init__(self, device: torch.device, budget: float) -> None:
        """Start.

        Args:
            device: ``cuda``; ``cpu`` is a dry run, whose times mean nothing.
            budget: seconds from now on.
        """
        self.device, self._end = device, time.monotonic() + budget

    @property
    def measures(self) -> bool:
        """Whether times mean something."""
        return self.device.type == "cuda"

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._end - time.monotonic()

    def check(self) -> None:
        """Raise ``OutOfTime`` when the budget is spent."""
        if self.left <= 0:
            raise OutOfTime

    def time(self, calls: Sequence[Call], *, quick: bool = False) -> Timing:
        """Time calls that do the same to different weights. Raises ``OutOfTime``."""
        self.check()
        if not self.measures:
            began = time.perf_counter()
            for call in calls[:1]:
                call()
            return Timing(time.perf_counter() - began, "dry run")
        for call in calls[:2]:
            call()
        torch.cuda.synchronize()
        run, how = self._captured(calls)
        seconds = self._events(run, 1)
        shortest, repeats = (QUICK, QUICK_REPEATS) if quick else (SHORTEST, REPEATS)
        replays = max(1, min(1000, round(shortest / max(seconds, 1e-7))))
        found = [self._events(run, replays) / replays for _ in range(repeats)]
        return Timing(statistics.median(found) / len(calls), how)

    def _captured(self, calls: Sequence[Call]) -> tuple[Call, str]:
        def every() -> None:
            for call in calls:
                call()

        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            every()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                every()
        except RuntimeError:
            # Some libraries' kernels cannot be captured: then the host's time is in it.
            torch.cuda.synchronize()
            return every, "eager"
        return graph.replay, "graph"

    @staticmethod
    def _events(run: Call, times: int) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(times):
            run()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1000
