"""What happens in a compile, in order: one generator over the plan and the graph.

The runner does what the events say, and the planner works out what doing it would take. Neither
knows the order by itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph, Node, Region, Stage
from qdc.pipeline.cutting import cut
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Group, Plan, Segment


@dataclass(frozen=True)
class Scope:
    """What one application of a pass covers: a wave, a region, or the model for a barrier."""

    step: Pass
    place: int
    """Place of the pass in the plan."""
    graph: LayerGraph
    """The whole graph."""
    waves: tuple[tuple[Stage, ...], ...]
    """Its stages, and which of them are worked on together: they do not hang on each other."""
    region: Region | None
    """The region that the stages belong to; None for a barrier pass."""
    whole_region: bool
    """Whether it is all of its region, so that nothing of it is quantized in between."""

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All its stages, wave by wave."""
        return tuple(stage for wave in self.waves for stage in wave)

    @property
    def name(self) -> str:
        """What progress and errors call this unit."""
        return self.region.name if self.region is not None else "model"

    @property
    def model(self) -> ModelFacts:
        """Facts of the model."""
        return self.graph.model

    def layers(self) -> tuple[Node, ...]:
        """The linears of this unit that are to be quantized, in execution order."""
        return tuple(self.graph.layers(self.stages))

    def layers_by_stage(self) -> Iterator[tuple[Stage, tuple[Node, ...]]]:
        """Each stage with those of its linears that are to be quantized; empty stages left out."""
        for wave in self.layers_by_wave():
            yield from wave

    def layers_by_wave(self) -> Iterator[tuple[tuple[Stage, tuple[Node, ...]], ...]]:
        """The same, wave by wave; empty waves left out."""
        wanted = {node.name for node in self.layers()}
        for wave in self.waves:
            found = tuple(
                (stage, tuple(self.graph[name] for name in stage.layers if name in wanted))
                for stage in wave
                if not wanted.isdisjoint(stage.layers)
            )
            if found:
                yield found


@dataclass(frozen=True)
class Spread:
    """All processes get what these nodes' weights stand in: a pass comes that may read it."""

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Apply:
    """A pass runs on a unit."""

    scope: Scope


@dataclass(frozen=True)
class ReleaseScratch:
    """No later pass reads the scratch tensors of these layers: moments, factors."""

    layers: tuple[str, ...]


@dataclass(frozen=True)
class Leave:
    """All calibration streams go past a region, and its weights are forgotten."""

    region: Region


@dataclass(frozen=True)
class Finish:
    """Nothing rewrites this region any more: a backend may write it."""

    region: Region


@dataclass(frozen=True)
class EndStep:
    """What the table still holds waits for a later step."""

    segment: bool
    """Whether the segment, too, ends, and with it the calibration streams."""
    last: bool
    """Whether no pass comes after this step's segment."""


Event = Spread | Apply | ReleaseScratch | Leave | Finish | EndStep


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


@dataclass(frozen=True)
class Traversal:
    """The way of a plan through a graph."""

    plan: Plan
    graph: LayerGraph
    memory: int | None = None
    """Bytes that the statistics of one wave may take; waves are cut to it. None is no limit."""

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The segments of the plan."""
        return tuple(self.plan.segments())

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """All steps, in order; behind a barrier at the end regions are still handed on."""
        found: list[Step] = []
        for index, segment in enumerate(self.segments):
            if segment.barrier:
                name = ",".join(step.name for step in segment.passes())
                found.append(Step(len(found), index, None, name, ends=True))
            else:
                found += self._regions(index, len(found))
        if not self.segments or self.segments[-1].barrier:
            found += self._regions(len(self.segments), len(found))
        return tuple(found)

    @cached_property
    def applications(self) -> int:
        """How many times a pass will be run on a unit."""
        regions = self.graph.regions
        total = 0
        for item in self.plan.items:
            if isinstance(item, Group):
                waves = (self._cut(item.order.waves(self.graph, region)) for region in regions)
                total += len(item.passes) * sum(map(len, waves))
            else:
                total += 1 if item.whole_model() else len(regions)
        return total

    def events(self, step: Step) -> Iterator[Event]:
        """What happens in one step, in order."""
        last = step.segment >= len(self.segments) - 1
        if step.segment < len(self.segments):
            yield from self._segment(step)
        if step.region is not None and last:
            yield Finish(self.graph.regions[step.region])
        later = (each for segment in self.segments[step.segment + 1 :] for each in segment.passes())
        if any(each.reads_all for each in later):  # it is to wait in all processes, not to travel
            yield self._spread(step.region)
        yield EndStep(step.ends, last)

    def _regions(self, segment: int, first: int) -> list[Step]:
        regions = self.graph.regions
        return [
            Step(first + number, segment, number, region.name, ends=region is regions[-1])
            for number, region in enumerate(regions)
        ]

    def _segment(self, step: Step) -> Iterator[Event]:
        """The passes of a segment, on the model or on the region of this step."""
        segment = self.segments[step.segment]
        place = sum(len(before.passes()) for before in self.segments[: step.segment])
        if step.region is None:
            alone = tuple((stage,) for region in self.graph.regions for stage in region.stages)
            for offset, barrier in enumerate(segment.passes()):
                if barrier.reads_all:
                    yield self._spread(None)
                yield Apply(Scope(barrier, place + offset, self.graph, alone, None, True))
            return
        region = self.graph.regions[step.region]
        for item in segment.items:
            if isinstance(item, Group):
                for wave in self._cut(item.order.waves(self.graph, region)):
                    for offset, inner in enumerate(item.passes):
                        at = place + offset
                        if inner.reads_all:
                            yield self._spread(step.region)
                        yield Apply(Scope(inner, at, self.graph, (wave,), region, False))
                    yield ReleaseScratch(tuple(name for stage in wave for name in stage.layers))
                place += len(item.passes)
            else:
                if item.reads_all:
                    yield self._spread(step.region)
                yield Apply(Scope(item, place, self.graph, self.waves(region), region, True))
                place += 1
        yield ReleaseScratch(tuple(name for stage in region.stages for name in stage.layers))
        yield Leave(region)

    def _spread(self, region: int | None) -> Spread:
        """What a pass on a region, or on the whole model, may read."""
        if region is None:
            return Spread(tuple(node.name for node in self.graph))
        return Spread((*self._outside, *self.graph.regions[region].nodes))

    @cached_property
    def _outside(self) -> tuple[str, ...]:
        return tuple(node.name for node in self.graph.outside())

    def waves(self, region: Region) -> tuple[tuple[Stage, ...], ...]:
        """The region's stages as they are worked on together, in their natural order."""
        return self._cut(self.graph.waves[region.name].stages)

    def _cut(self, waves: tuple[tuple[Stage, ...], ...]) -> tuple[tuple[Stage, ...], ...]:
        """The waves in parts whose statistics fit the memory."""
        return tuple(part for wave in waves for part in cut(self.graph, wave, self.memory))
