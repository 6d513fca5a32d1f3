"""Everything that watches a pipeline run: one interface, called around every pass application."""

import time
from dataclasses import dataclass
from pathlib import Path

import torch

from qdc.errors import InvalidGraph
from qdc.ir.verify import verify
from qdc.pipeline.plan import Plan
from qdc.streaming.remark import Remark
from qdc.streaming.unit import Unit


class Instrument:
    """Observe a run. ``place`` counts the passes of the plan; a pass has one call for each unit."""

    def before(self, place: int, unit: Unit) -> None:
        """A pass is about to run on a unit."""

    def after(self, place: int, unit: Unit) -> None:
        """A pass has run on a unit."""

    def failed(self, place: int, unit: Unit, error: BaseException) -> None:
        """A pass raised; the error goes on afterwards."""


class GraphVerifier(Instrument):
    """Check the graph after every pass, and that the pass gave what it declares."""

    def __init__(self) -> None:
        """Everything is checked after the first pass, then what has changed since."""
        self._first = True

    def after(self, place: int, unit: Unit) -> None:
        """Raise ``InvalidGraph`` naming the pass that broke the graph or its word."""
        changed = unit.graph.take_changed()
        verify(
            unit.graph,
            unit.tensors,
            after=unit.step.name,
            structure=self._first,
            only=None if self._first else changed,
        )
        self._first = False
        layers = unit.layers()
        for kind in unit.step.provides:
            lacking = [f"%{n.name}" for n in layers if unit.graph.get(n.name, kind) is None]
            if lacking:
                raise InvalidGraph(
                    f"{unit.step.name} provides @{kind.slot_name()}, "
                    f"and {len(lacking)} of {len(layers)} layers lack it afterwards",
                    where=lacking,
                    help="annotate every layer of the unit, or annotate @kept on those left out",
                )


class Remarks(Instrument):
    """Collect what passes say about layers."""

    def __init__(self) -> None:
        """Start with none."""
        self.found: list[Remark] = []
        self.earlier: tuple[str, ...] = ()
        """Those of the process that this one goes on from."""

    def after(self, place: int, unit: Unit) -> None:
        """Take over the remarks of this application."""
        self.found += unit.take_remarks()

    def lines(self) -> tuple[str, ...]:
        """All of them as text."""
        return (*self.earlier, *map(str, self.found))


@dataclass
class Measured:
    """Cost of one pass over all its units."""

    name: str
    seconds: float = 0.0
    peak_bytes: int = 0
    """Highest resident memory of the process (or device memory) while it ran."""
    units: int = 0


class Meter(Instrument):
    """Wall time and peak memory by pass."""

    def __init__(self, plan: Plan) -> None:
        """Start at zero for each pass of the plan."""
        self.measured = [Measured(step.name) for step in plan.passes()]
        self.highest = 0
        """Peak bytes of the whole run, also between passes."""
        self._start = 0.0

    def before(self, place: int, unit: Unit) -> None:
        """Start the clock."""
        self.look(unit.device)
        _reset_peak(unit.device)
        self._start = time.perf_counter()

    def after(self, place: int, unit: Unit) -> None:
        """Stop the clock."""
        row = self.measured[place]
        row.seconds += time.perf_counter() - self._start
        row.peak_bytes = max(row.peak_bytes, peak_bytes(unit.device))
        row.units += 1
        self.look(unit.device)

    def look(self, device: torch.device) -> int:
        """The peak so far, between passes too."""
        self.highest = max(self.highest, peak_bytes(device))
        return self.highest


def peak_bytes(device: torch.device) -> int:
    """Peak memory since the last reset: of the CUDA device, else resident memory of the process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return _rusage_peak()


def _rusage_peak() -> int:
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)


def _reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return
