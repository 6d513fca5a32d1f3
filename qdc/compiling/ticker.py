"""Tells the progress what runs, on which layers, and how long all may still take."""

import time
from collections.abc import Callable

from qdc.compiling.instruments import Instrument
from qdc.compiling.timeleft import Expected, seconds_left
from qdc.streaming.unit import Unit
from qdc.units import DetailedProgress, StepProgress

STEP = "run the passes"
PATIENCE = 2.0
"""Seconds after which the time that is left is worked out: shorter runs need none."""
MOST_NAMED = 4
"""Layers of a unit that are named."""


class Ticker(Instrument):
    """Counts applications of passes; of one that wants more it tells what runs."""

    def __init__(
        self,
        notify: StepProgress,
        total: int,
        expect: Callable[[], Expected | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin now.

        Args:
            notify: takes the progress.
            total: applications of all passes.
            expect: works out what each application may take; called once, if at all.
            clock: seconds, from any start.
        """
        self.notify, self.total, self.expect, self.clock = notify, total, expect, clock
        self.first = self.done = 0
        self.measured: list[float] = []
        self._expected: Expected | None = None
        self._asked = False
        self._began = self._mark = clock()

    def go_on(self, done: int) -> None:
        """Start behind what an earlier process has done."""
        self.first = self.done = done
        self._mark = self.clock()

    def before(self, place: int, unit: Unit) -> None:
        """Tell what is about to run."""
        if isinstance(self.notify, DetailedProgress):
            self.notify(STEP, self.done, self.total)
            self.notify.working(f"{unit.step.name} {_where(unit)}", self.left())

    def after(self, place: int, unit: Unit) -> None:
        """One more application is done."""
        now = self.clock()
        # What lies between two applications, as leaving a region, belongs to the later one.
        self.measured.append(now - self._mark)
        self._mark = now
        self.done += 1
        self.notify(STEP, self.done, self.total)

    def left(self) -> float | None:
        """Seconds to the end; None while it is not known."""
        now = self.clock()
        if not self._asked and now - self._began >= PATIENCE:
            self._asked, self._expected = True, self.expect()
            self._mark += self.clock() - now  # working it out is no part of the application
        if self._expected is None or len(self._expected) != self.total:
            return None
        return seconds_left(self._expected, self.measured, self.first, self.clock() - self._mark)


def _where(unit: Unit) -> str:
    """``blocks.3 q_proj k_proj v_proj``, ``blocks.3``, ``the model``."""
    if unit.region is None:
        return "the model"
    if unit.whole_region:
        return unit.region.name
    layers = [name for stage in unit.stages for name in stage.layers]
    names = [name.removeprefix(f"{unit.region.name}.") for name in layers]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{unit.region.name} {' '.join(names[:MOST_NAMED])}{more}"
