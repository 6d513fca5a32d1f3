"""The one runner: segments between barriers, region by region, stage by stage where asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdc.ir.graph import Region, Stage
from qdc.passbase import Pass
from qdc.pipeline.instruments import Instrument
from qdc.pipeline.plan import Group, Plan, Segment
from qdc.pipeline.unit import Unit
from qdc.pipeline.workspace import Workspace

RegionDone = Callable[[Region], None]


@dataclass
class Runner:
    """Runs a plan over a workspace; instruments see every pass application."""

    plan: Plan
    workspace: Workspace
    instruments: Sequence[Instrument]
    scratch: Path
    """A folder for tensors that wait between two segments."""

    def run(self, region_done: RegionDone) -> None:
        """Run all segments; call ``region_done`` for each region that is finished for good."""
        segments = list(self.plan.segments())
        place = 0
        for index, segment in enumerate(segments):
            last = index == len(segments) - 1
            if segment.barrier:
                self._barrier(segment, place)
            else:
                self._regions(segment, place, region_done if last else None, index)
            if segment.barrier and last:
                for region in self.workspace.program.graph.regions:
                    region_done(region)
            self.workspace.end_segment(
                None if last else self.scratch / f"segment_{index}.safetensors"
            )
            place += _count(segment)
        if not segments:
            for region in self.workspace.program.graph.regions:
                region_done(region)

    def _regions(
        self, segment: Segment, place: int, region_done: RegionDone | None, index: int
    ) -> None:
        for number, region in enumerate(self.workspace.program.graph.regions):
            at = place
            for item in segment.items:
                if isinstance(item, Group):
                    for stage in item.order.sort(self.workspace.program.graph, region):
                        for offset, step in enumerate(item.passes):
                            self._apply(step, at + offset, (stage,), region, whole=False)
                        self.workspace.release_scratch(stage.layers)
                    at += len(item.passes)
                else:
                    self._apply(item, at, region.stages, region, whole=True)
                    at += 1
            self.workspace.release_scratch(tuple(n for s in region.stages for n in s.layers))
            self.workspace.leave(region)
            if region_done is not None:
                region_done(region)
            else:
                self.workspace.tensors.spill(
                    self.scratch / f"segment_{index}_region_{number}.safetensors"
                )

    def _barrier(self, segment: Segment, place: int) -> None:
        (step,) = segment.items
        assert isinstance(step, Pass)
        stages = tuple(s for region in self.workspace.program.graph.regions for s in region.stages)
        self._apply(step, place, stages, None, whole=True)

    def _apply(
        self,
        step: Pass,
        place: int,
        stages: tuple[Stage, ...],
        region: Region | None,
        *,
        whole: bool,
    ) -> None:
        unit = Unit(step, place, self.workspace, stages, region, whole)
        for instrument in self.instruments:
            instrument.before(place, unit)
        try:
            step.run(unit)
            unit.settle()
            for instrument in self.instruments:
                instrument.after(place, unit)
        except Exception as error:
            if self.workspace.world.speaks(error):
                for instrument in self.instruments:
                    instrument.failed(place, unit, error)
            raise


def _count(segment: Segment) -> int:
    return sum(len(item.passes) if isinstance(item, Group) else 1 for item in segment.items)
