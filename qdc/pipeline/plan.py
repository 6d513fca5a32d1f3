"""What a pipeline is once it is configured: groups, segments, and the check of their order.

The order is never changed: what a pass reads must be provided before it, and everything that is
unmet is reported together, before any forward.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from pydantic import Field

from qdc.errors import InvalidPipeline, MissingAnnotation, QdcError, nearest
from qdc.format.codec import Lowered
from qdc.ir.activations import InputCodes
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph, Region, Stage
from qdc.ir.routing import GIVE
from qdc.ir.tuned import Tuned
from qdc.pipeline.passbase import Configured, Kinds, Pass
from qdc.pipeline.syntax import STAGES

REWRITES = (Lowered, Tuned, InputCodes)
"""What changes values that calibration streams have computed already."""


class StageOrder(Configured):
    """The options of ``stages(...)``."""

    name: ClassVar[str] = STAGES
    order: Literal["natural", "outputs-first"] = Field(
        default="natural",
        description="stages as they are executed, or first those that write into the residual "
        "stream, while what they read is still in full precision (the released code's for LLaDA)",
    )

    def waves(self, graph: LayerGraph, region: Region) -> tuple[tuple[Stage, ...], ...]:
        """The region's stages in the order in which they are finished, wave by wave.

        Those of one wave do not hang on each other.
        """
        waves = graph.waves[region.name].stages
        if self.order == "natural":
            return waves
        parts = [
            tuple(stage for stage in wave if _writes_residual(graph, stage) is first)
            for first in (True, False)
            for wave in waves
        ]
        return tuple(part for part in parts if part)


def _writes_residual(graph: LayerGraph, stage: Stage) -> bool:
    """Whether all that reads the stage's layers adds them to something, or to other experts."""
    readers = {read for layer in stage.layers for read in graph.edges.successors(layer)}
    return bool(readers) and all(graph[reader].op in ("add", GIVE) for reader in readers)


@dataclass(frozen=True)
class Group:
    """Passes that run stage by stage: each stage is finished before the next is calibrated."""

    passes: tuple[Pass, ...]
    order: StageOrder = field(default_factory=StageOrder)

    def __str__(self) -> str:
        """``stages(a,b)``."""
        return f"{self.order}({','.join(map(str, self.passes))})"


@dataclass(frozen=True)
class Segment:
    """Items between two barriers, run region by region; or one barrier pass by itself."""

    items: tuple[Pass | Group, ...]
    barrier: bool

    def passes(self) -> tuple[Pass, ...]:
        """Every pass in order."""
        return tuple(_passes(self.items))


@dataclass(frozen=True)
class Plan:
    """A pipeline that is ready to run."""

    items: tuple[Pass | Group, ...]

    def __str__(self) -> str:
        """The pipeline text that rebuilds this plan."""
        return ",".join(map(str, self.items))

    def passes(self) -> Iterator[Pass]:
        """Every pass in order."""
        yield from _passes(self.items)

    def segments(self) -> Iterator[Segment]:
        """Split at the barriers."""
        pending: list[Pass | Group] = []
        for item in self.items:
            if isinstance(item, Pass) and item.whole_model():
                if pending:
                    yield Segment(tuple(pending), barrier=False)
                yield Segment((item,), barrier=True)
                pending = []
            else:
                pending.append(item)
        if pending:
            yield Segment(tuple(pending), barrier=False)

    def returns(self) -> bool:
        """Whether a calibration stream must be able to go back inside a region.

        So it is where stages are taken out of order, and where a pass rewrites what the stages of
        its region have been calibrated through.
        """
        after_group = False
        for item in self.items:
            passes = item.passes if isinstance(item, Group) else (item,)
            rewritten = (kind for step in passes for kind in step.provides)
            if after_group and any(issubclass(kind, REWRITES) for kind in rewritten):
                return True
            if isinstance(item, Group):
                after_group = True
                if item.order != StageOrder():
                    return True
        return False

    def cut(self, place: int) -> "Plan":
        """The plan up to and including the pass at this place, counted over ``passes()``."""
        kept: list[Pass | Group] = []
        left = place + 1
        for item in self.items:
            inside = item.passes if isinstance(item, Group) else (item,)
            taken = inside[:left]
            if taken:
                kept.append(Group(taken, item.order) if isinstance(item, Group) else taken[0])
            left -= len(taken)
        return Plan(tuple(kept))

    def place_of(self, name: str) -> int:
        """Place of the last pass of this name. Raises ``QdcError`` with the nearest names."""
        names = [step.name for step in self.passes()]
        if name not in names:
            raise QdcError(
                f"the pipeline has no pass {name!r}",
                help=f"{nearest(name, set(names))}; it is: {self}",
            )
        return len(names) - 1 - names[::-1].index(name)


def _passes(items: Iterable[Pass | Group]) -> Iterator[Pass]:
    for item in items:
        yield from item.passes if isinstance(item, Group) else (item,)


def check_order(
    plan: Plan,
    present: Kinds = (),
    final: Kinds = (),
    backend: str = "",
    whole: Plan | None = None,
) -> None:
    """Check that everything that is read was provided before.

    Args:
        plan: the pipeline.
        present: annotations that the graph carries at the start.
        final: annotations that the backend of this name reads at the end.
        backend: its name.
        whole: the pipeline that ``plan`` was cut from, if it was: passes look at what was to come.

    Raises:
        MissingAnnotation: naming every unmet need at once.
        InvalidPipeline: a pass refuses one behind it.
    """
    steps = list((whole or plan).passes())
    for place, step in enumerate(steps):
        step.check_later(steps[place + 1 :])
    available: dict[type[Annotation], None] = dict.fromkeys(present)
    released: dict[type[Annotation], str] = {}
    unmet: list[str] = []
    lacking: dict[str, None] = {}
    able: dict[str, None] = {}
    passed: list[Pass] = []
    spoiled: list[str] = []

    def demand(who: str, kinds: Kinds) -> None:
        for kind in kinds:
            if not any(issubclass(have, kind) for have in available):
                why = released.get(kind, "which nothing before it provides")
                unmet.append(f"{who} reads @{kind.slot_name()}, {why}")
                lacking[f"qdc passes --provides {kind.slot_name()}"] = None
                able.update((p.name, None) for p in passed if kind in p.if_asked)

    def spoil(step: Pass) -> None:
        found = [have for have in available if issubclass(have, step.forbids)]
        if found:
            tags = ", ".join(dict.fromkeys(f"@{kind.slot_name()}" for kind in found))
            spoiled.append(f"{step.name} makes {tags} of before it wrong")

    def release(where: str) -> None:
        for kind in [kind for kind in available if kind.scratch]:
            del available[kind]
            released[kind] = f"which is released at the end of {where}"

    def provide(step: Pass) -> None:
        lowers = any(issubclass(kind, Lowered) for kind in step.provides)
        if lowers and Packed in available:
            del available[Packed]
            released[Packed] = f"which {step.name} makes stale"
        for kind in [have for have in available if issubclass(have, step.consumes)]:
            del available[kind]
            released.update(dict.fromkeys((kind, *step.consumes), f"which {step.name} used up"))
        available.update(dict.fromkeys(step.gives()))

    for segment in plan.segments():
        for item in segment.items:
            for step in item.passes if isinstance(item, Group) else (item,):
                demand(step.name, step.needs())
                spoil(step)
                provide(step)
                passed.append(step)
            if isinstance(item, Group):
                release("stages(...)")
        release("a region, before the next barrier")
    demand(f"backend {backend}", final)
    if spoiled:
        raise InvalidPipeline(
            "; ".join(spoiled), help="put it before all that calibrates or lowers the layers"
        )
    if unmet:
        raise MissingAnnotation(
            f"the pipeline has {len(unmet)} unmet need{'s' * (len(unmet) > 1)}: {'; '.join(unmet)}",
            help="add a pass that provides it, earlier in the same stages(...) where the tensors "
            f"are scratch; {' and '.join(lacking)} name the candidates"
            + "".join(
                f"; {name} provides it if an option says so: qdc passes {name}" for name in able
            ),
        )
