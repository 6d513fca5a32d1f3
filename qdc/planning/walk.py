"""Walk through a pipeline as the runner does, asking every pass instead of running it."""

from qdc.ir.graph import Node, Region, Stage
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Group, Plan, Segment
from qdc.streaming.forecast import Forecast
from qdc.streaming.prospect import LOADED, SCRATCH, TABLE, Prospect


def walk(plan: Plan, prospect: Prospect) -> None:
    """Forecast every pass on every unit, and let go of what the runner lets go of."""
    segments, steps = list(plan.segments()), list(plan.passes())
    place = 0
    for index, segment in enumerate(segments):
        last = index == len(segments) - 1
        if segment.barrier:
            _barrier(segment, place, prospect)
        else:
            _regions(segment, place, prospect, steps, last=last)
        prospect.ledger.moment = "the end of a segment"
        prospect.end_segment(last=last)
        place += sum(len(i.passes) if isinstance(i, Group) else 1 for i in segment.items)
    _finish(prospect)


def _regions(
    segment: Segment, place: int, prospect: Prospect, steps: list[Pass], *, last: bool
) -> None:
    graph, ledger = prospect.program.graph, prospect.ledger
    for region in graph.regions:
        at = place
        for item in segment.items:
            if isinstance(item, Group):
                for stage in item.order.sort(graph, region):
                    for offset, step in enumerate(item.passes):
                        _apply(step, at + offset, prospect, (stage,), region, whole=False)
                    ledger.release_all(f"{SCRATCH}{stage.value}:")
                at += len(item.passes)
            else:
                _apply(item, at, prospect, region.stages, region, whole=True)
                at += 1
        ledger.release_all(SCRATCH)
        _leave(prospect, region, steps)
        ledger.release(LOADED + region.name)
        if last:
            for name in region.nodes:
                ledger.release(TABLE + name)
        else:
            prospect.spill()


def _leave(prospect: Prospect, region: Region, steps: list[Pass]) -> None:
    """Move all streams on; what that computes counts for the passes that own them."""
    prospect.ledger.moment = f"leaving {region.name}"
    for (place, _), stream in list(prospect.streams.items()):
        unit = Forecast(steps[place], place, prospect, region.stages, region, whole_region=True)
        unit.leave(stream, region)


def _barrier(segment: Segment, place: int, prospect: Prospect) -> None:
    (step,) = segment.items
    assert isinstance(step, Pass)
    stages = tuple(s for region in prospect.program.graph.regions for s in region.stages)
    _apply(step, place, prospect, stages, None, whole=True)


def _apply(
    step: Pass,
    place: int,
    prospect: Prospect,
    stages: tuple[Stage, ...],
    region: Region | None,
    *,
    whole: bool,
) -> None:
    where = "the whole model" if region is None else region.name
    if region is not None and not whole:
        where = f"{', '.join(stages[0].layers)}"
    prospect.ledger.moment = f"{step.name} on {where}"
    step.forecast(Forecast(step, place, prospect, stages, region, whole))


def _finish(prospect: Prospect) -> None:
    """What lies outside of the regions is written together, read back from the disk."""
    prospect.ledger.moment = "writing what lies outside the regions"
    inside = {name for region in prospect.program.graph.regions for name in region.nodes}
    rest = [node for node in prospect.program.graph if node.name not in inside]
    nbytes = sum(_stored(prospect, node) for node in rest)
    prospect.ledger.work("the last shard", nbytes, "host")


def _stored(prospect: Prospect, node: Node) -> int:
    codec = prospect.codecs.get(node.name)
    if codec is not None:
        return codec.nbytes
    return sum(parameter.nbytes for parameter in node.parameters)
