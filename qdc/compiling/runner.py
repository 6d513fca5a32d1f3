"""The one runner: segments between barriers, region by region, stage by stage where asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from qdc.compiling.instruments import Instrument
from qdc.ir.graph import Region, Stage
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Group, Plan, Segment
from qdc.streaming.unit import Unit
from qdc.streaming.workspace import Workspace

RegionDone = Callable[[Region], None]


@dataclass(frozen=True)
class Step:
    """What runs between two boundaries: a segment on one region, or a barrier pass."""

    number: int
    """Place among all steps."""
    segment: int
    """Place of its segment; one more than the last of a region that is only handed on."""
    region: int | None
    """Place of its region; None for a barrier pass."""
    name: str
    ends: bool
    """Whether it is the last of its segment: streams end here."""


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
    def segments(self) -> tuple[Segment, ...]:
        """The segments of the plan."""
        return tuple(self.plan.segments())

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order."""
        regions = self.workspace.program.graph.regions
        found: list[Step] = []

        def add(segment: int, region: int | None, name: str, ends: bool) -> None:
            found.append(Step(len(found), segment, region, name, ends))

        for index, segment in enumerate(self.segments):
            if segment.barrier:
                add(index, None, str(segment.items[0].name), True)  # type: ignore[union-attr]
                continue
            for number, region in enumerate(regions):
                add(index, number, region.name, region is regions[-1])
        if not self.segments or self.segments[-1].barrier:
            for number, region in enumerate(regions):
                add(len(self.segments), number, region.name, region is regions[-1])
        return tuple(found)

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
        for step in self.steps[first:]:
            self.run_step(step, region_done)
            step_done(step)

    def run_step(self, step: Step, region_done: RegionDone) -> None:
        """Run one step; what it leaves in memory is moved to a file unless nothing follows."""
        regions = self.workspace.program.graph.regions
        last = max(0, len(self.segments) - 1)
        if step.segment < len(self.segments):
            segment = self.segments[step.segment]
            place = sum(map(_count, self.segments[: step.segment]))
            if step.region is None:
                self._barrier(segment, place)
            else:
                self._region(segment, place, regions[step.region])
        if step.region is not None and step.segment >= last:
            region_done(regions[step.region])
        if step.ends:
            self.workspace.end_segment()
        if self.keep or step.segment < last:
            self.workspace.tensors.spill(self.tensors_file(step))

    def tensors_file(self, step: Step) -> Path:
        """Where the tensors go that a step leaves to later ones."""
        return self.scratch / f"{step.number:05d}_tensors.safetensors"

    def _region(self, segment: Segment, place: int, region: Region) -> None:
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
