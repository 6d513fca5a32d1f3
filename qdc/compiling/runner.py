"""The runner: it does what the traversal says, one step after the other."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qdc.compiling.instruments import Instrument
from qdc.ir.graph import Region
from qdc.numerics.threads import SMALL_LAYER, one_thread
from qdc.pipeline.plan import Plan
from qdc.pipeline.traversal import (
    Apply,
    EndStep,
    Finish,
    Leave,
    ReleaseScratch,
    Scope,
    Spread,
    Step,
    Traversal,
)
from qdc.stopping import check, is_stop
from qdc.streaming.unit import Unit
from qdc.streaming.workspace import Workspace

RegionDone = Callable[[Region], None]


@dataclass
class Runner:
    """Runs a plan over a workspace; instruments see every pass application."""

    plan: Plan
    workspace: Workspace
    instruments: Sequence[Instrument]
    scratch: Path
    """A folder for tensors that wait for a later step."""
    keep: bool = False
    """Whether the last segment, too, leaves nothing in memory behind a step."""

    @cached_property
    def traversal(self) -> Traversal:
        """The way of the plan through the graph."""
        return Traversal(self.plan, self.workspace.program.graph, self.workspace.memory)

    def run(
        self,
        region_done: RegionDone,
        step_done: Callable[[Step], None] = lambda step: None,
        first: int = 0,
    ) -> None:
        """Run the steps from ``first`` on.

        Args:
            region_done: called for each region that is finished for good.
            step_done: called after each step; everything that outlives it can be looked at then.
            first: number of the first step to run.
        """
        for step in self.traversal.steps[first:]:
            self.run_step(step, region_done)
            step_done(step)

    def run_step(self, step: Step, region_done: RegionDone) -> None:
        """Run one step; what it leaves in memory is moved to a file unless nothing follows."""
        self.workspace.tensors.aside(self.tensors_file(step))
        for event in self.traversal.events(step):
            match event:
                case Spread(nodes):
                    self.workspace.forms.bring(nodes)
                case Apply(scope):
                    self._apply(scope)
                case ReleaseScratch(layers):
                    self.workspace.release(layers, scratch=True)
                case Leave(region):
                    self.workspace.leave(region)
                case Finish(region):
                    region_done(region)
                case EndStep(segment, last):
                    if segment:
                        self.workspace.end_segment()
                    if self.keep or not last:
                        self.workspace.tensors.spill(self.tensors_file(step))

    def tensors_file(self, step: Step) -> Path:
        """Where the tensors go that a step leaves to later ones."""
        return self.scratch / f"{step.number:05d}_tensors.safetensors"

    def tensors_files(self, step: Step) -> list[Path]:
        """All such files of a step that was run: those of single tensors too."""
        named = self.tensors_file(step)
        return sorted(self.scratch.glob(f"{named.stem}*{named.suffix}"))

    def _apply(self, scope: Scope) -> None:
        check()
        place, unit = scope.place, Unit.of(scope, self.workspace)
        for instrument in self.instruments:
            instrument.before(place, unit)
        try:
            with one_thread(where=_is_small(unit)):
                unit.step.run(unit)
                unit.settle()
            for instrument in self.instruments:
                instrument.after(place, unit)
        except BaseException as error:  # as of a pass that calls sys.exit
            if not is_stop(error) and self.workspace.world.speaks(error):
                for instrument in self.instruments:
                    instrument.failed(place, unit, error)
            raise


def _is_small(unit: Unit) -> bool:
    """Whether a pass does nothing but small steps: on small layers, and without samples."""
    largest = max((node.rows * node.columns for node in unit.layers()), default=SMALL_LAYER)
    on_cpu = unit.device.type == "cpu"
    return on_cpu and not unit.step.reads_calibration and largest < SMALL_LAYER
