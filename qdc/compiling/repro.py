"""The instrument that leaves a folder behind when a pass fails: what it saw, and how to rerun."""

import traceback
from pathlib import Path

from qdc.compiling.dumper import Notes, notes_of
from qdc.compiling.instruments import Instrument
from qdc.errors import InvalidCalibration, InvalidCheckpoint, OrderOutOfRange
from qdc.ir.dump import to_bytes
from qdc.ir.printer import render
from qdc.pipeline.plan import Plan
from qdc.streaming.unit import Unit


class Repro(Instrument):
    """Write the graph before the failing pass, the error, and the command that reruns it.

    Only a mistake in the checkpoint or in the calibration text needs none: the error names it.
    """

    def __init__(self, plan: Plan, folder: Path, command: str) -> None:
        """``command`` is what the user typed, or how the API was called."""
        self.plan, self.folder, self.command = plan, folder, command
        self._before: Notes = {}

    def before(self, place: int, unit: Unit) -> None:
        """Keep the unit's annotations: a failing pass may leave them half rewritten."""
        self._before = notes_of(unit.graph, [n for stage in unit.stages for n in stage.layers])

    def failed(self, place: int, unit: Unit, error: BaseException) -> None:
        """Write the folder and say so in a note on the error."""
        if isinstance(error, InvalidCalibration | InvalidCheckpoint | OrderOutOfRange):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"pass     {unit.step}",
            f"unit     {unit.name}: {' '.join(n for s in unit.stages for n in s.layers)}",
            f"rerun    {self.command or 'qdc.compile(...)'}",
            f"up to    --passes '{self.plan.cut(place)}' --stop-after {unit.step.name}",
            "",
            "".join(traceback.format_exception(error)),
        ]
        (self.folder / "error.txt").write_text("\n".join(lines), encoding="utf-8")
        graph = unit.graph.with_annotations(
            {**notes_of(unit.graph, [node.name for node in unit.graph]), **self._before},
            str(self.plan.cut(place - 1)) if place else "",
        )
        (self.folder / "before.qdc").write_bytes(to_bytes(graph))
        (self.folder / "before.txt").write_text(render(graph), encoding="utf-8")
        error.add_note(f"repro: {self.folder}/error.txt has the command that reruns it")
