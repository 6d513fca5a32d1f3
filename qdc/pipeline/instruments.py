"""Everything that watches a pipeline run: one interface, called around every pass application."""

import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from qdc.ir.annotations import Annotation
from qdc.ir.dump import to_bytes
from qdc.ir.printer import render
from qdc.ir.verify import verify
from qdc.pipeline.plan import Plan
from qdc.pipeline.unit import Unit


class Instrument:
    """Observe a run. ``place`` counts the passes of the plan; a pass has one call for each unit."""

    def before(self, place: int, unit: Unit) -> None:
        """A pass is about to run on a unit."""

    def after(self, place: int, unit: Unit) -> None:
        """A pass has run on a unit."""

    def failed(self, place: int, unit: Unit, error: Exception) -> None:
        """A pass raised; the error goes on afterwards."""


class Verifier(Instrument):
    """Check the whole graph after every pass."""

    def after(self, place: int, unit: Unit) -> None:
        """Raise ``InvalidGraph`` naming the pass that broke the graph."""
        verify(unit.graph, unit.tensors, after=unit.step.name)


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
        self._start = 0.0

    def before(self, place: int, unit: Unit) -> None:
        """Start the clock."""
        _reset_peak(unit.device)
        self._start = time.perf_counter()

    def after(self, place: int, unit: Unit) -> None:
        """Stop the clock."""
        row = self.measured[place]
        row.seconds += time.perf_counter() - self._start
        row.peak_bytes = max(row.peak_bytes, peak_bytes(unit.device))
        row.units += 1


@dataclass
class Dumper(Instrument):
    """Write the graph as it is after chosen passes, once they have run on every unit.

    Passes run region by region, so the graph after one pass is put together from what each unit
    carried right after it.
    """

    plan: Plan
    folder: Path
    places: frozenset[int]
    _seen: dict[int, dict[str, tuple[Annotation, ...]]] = field(default_factory=dict)

    def after(self, place: int, unit: Unit) -> None:
        """Note what the unit's linears carry now."""
        if place in self.places:
            notes = self._seen.setdefault(place, {})
            for stage in unit.stages:
                for name in stage.layers:
                    notes[name] = tuple(unit.graph.annotations(name).values())

    def write(self, unit_graph_of: Unit | None, initial: dict[str, tuple[Annotation, ...]]) -> list[Path]:
        """Write ``NN_pass.qdc`` and ``.txt`` for each chosen pass; return the files."""
        if unit_graph_of is None:
            return []
        written = []
        names = [step.name for step in self.plan.passes()]
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in sorted(self._seen):
            graph = unit_graph_of.graph.with_annotations(
                {**initial, **self._seen[place]}, self.plan.text_through(place)
            )
            stem = self.folder / f"{place + 1:02d}_{names[place]}"
            stem.with_suffix(".qdc").write_bytes(to_bytes(graph))
            stem.with_suffix(".txt").write_text(render(graph), encoding="utf-8")
            written += [stem.with_suffix(".qdc"), stem.with_suffix(".txt")]
        return written


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
