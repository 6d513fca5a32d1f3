"""From pipeline text to an ordered, checked plan of configured passes.

The order is never changed: what a pass reads must be provided before it, and everything that is
unmet is reported together, before any forward.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

from pydantic import Field, ValidationError

from qdc.codec import Lowered
from qdc.errors import InvalidPipeline, MissingAnnotation, QdcError, nearest
from qdc.ir.annotations import Annotation, Packed
from qdc.ir.graph import LayerGraph, Region, Stage
from qdc.ir.tuned import Tuned
from qdc.passbase import Configured, Kinds, Pass, option_text
from qdc.pipeline.syntax import STAGES, Item, StagesItem, caret, parse
from qdc.registry import Registry


class StageOrder(Configured):
    """The options of ``stages(...)``."""

    name: ClassVar[str] = STAGES
    order: Literal["natural", "outputs-first"] = Field(
        default="natural",
        description="stages as they are executed, or first those that write into the residual "
        "stream, while what they read is still in full precision (the released code's for LLaDA)",
    )

    def sort(self, graph: LayerGraph, region: Region) -> tuple[Stage, ...]:
        """The region's stages in the order in which they are finished."""
        if self.order == "natural":
            return region.stages
        return tuple(sorted(region.stages, key=lambda stage: not _writes_residual(graph, stage)))


def _writes_residual(graph: LayerGraph, stage: Stage) -> bool:
    """Whether all that reads the stage's layers adds them to something."""
    readers = {read for layer in stage.layers for read in graph.edges.successors(layer)}
    return bool(readers) and all(graph[reader].op == "add" for reader in readers)


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


@dataclass(frozen=True)
class Plan:
    """A pipeline that is ready to run."""

    items: tuple[Pass | Group, ...]

    def __str__(self) -> str:
        """The pipeline text that rebuilds this plan."""
        return ",".join(map(str, self.items))

    def passes(self) -> Iterator[Pass]:
        """Every pass in order."""
        for item in self.items:
            yield from item.passes if isinstance(item, Group) else (item,)

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
            if after_group and any(issubclass(kind, Lowered | Tuned) for kind in rewritten):
                return True
            if isinstance(item, Group):
                after_group = True
                if item.order != StageOrder():
                    return True
        return False

    def applications(self, graph: LayerGraph) -> int:
        """How many times a pass will be run on a unit."""
        stages = sum(len(region.stages) for region in graph.regions)
        total = 0
        for item in self.items:
            if isinstance(item, Group):
                total += len(item.passes) * stages
            else:
                total += 1 if item.whole_model() else len(graph.regions)
        return total

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
                f"the pipeline has no pass {name!r}", help=f"{nearest(name, names)}; it is: {self}"
            )
        return len(names) - 1 - names[::-1].index(name)


def build_plan(
    text: str, registry: Registry, overrides: Mapping[str, object] | None = None
) -> Plan:
    """Parse a pipeline, expand its presets, configure its passes.

    Args:
        text: as in ``default`` or ``stages(calibrate-mcs{samples=64},...),pack``.
        registry: where names are looked up.
        overrides: option values that go to every pass that has such an option.

    Raises:
        InvalidPipeline: bad text, a bad option, or an override that no pass takes.
        UnknownName: an unknown pass, with the nearest names.
    """
    wanted = {key: value for key, value in (overrides or {}).items() if value is not None}
    builder = _Builder(text, registry, wanted)
    plan = Plan(tuple(builder.items(parse(text))))
    unused = sorted(set(wanted) - builder.used)
    if unused:
        raise InvalidPipeline(
            f"no pass of the pipeline takes {', '.join('--' + key for key in unused)}",
            help=f"the pipeline is: {plan}",
        )
    return plan


def check_order(plan: Plan, present: Kinds = (), final: Kinds = (), backend: str = "") -> None:
    """Check that everything that is read was provided before.

    Args:
        plan: the pipeline.
        present: annotations that the graph carries at the start.
        final: annotations that the backend of this name reads at the end.
        backend: its name.

    Raises:
        MissingAnnotation: naming every unmet need at once.
        InvalidPipeline: a pass refuses one behind it.
    """
    steps = list(plan.passes())
    for place, step in enumerate(steps):
        step.check_later(steps[place + 1 :])
    available: dict[type[Annotation], None] = dict.fromkeys(present)
    released: dict[type[Annotation], str] = {}
    unmet: list[str] = []

    def demand(who: str, kinds: Kinds) -> None:
        for kind in kinds:
            if not any(issubclass(have, kind) for have in available):
                why = released.get(kind, "which nothing before it provides")
                unmet.append(f"{who} reads @{kind.slot_name()}, {why}")

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
        available.update(dict.fromkeys(step.provides))

    for segment in plan.segments():
        for item in segment.items:
            for step in item.passes if isinstance(item, Group) else (item,):
                demand(step.name, step.needs())
                provide(step)
            if isinstance(item, Group):
                release("stages(...)")
        release("a region, before the next barrier")
    demand(f"backend {backend}", final)
    if unmet:
        raise MissingAnnotation(
            f"the pipeline has {len(unmet)} unmet need{'s' * (len(unmet) > 1)}: {'; '.join(unmet)}",
            help="add a pass that provides it, earlier in the same stages(...) where the tensors "
            "are scratch; qdc passes lists what each pass reads and writes",
        )


def configure(kind: type[Configured], item: Item, text: str) -> Configured:
    """Make a pass or a backend from its parsed options. Raises ``InvalidPipeline``."""
    fields = {name.replace("_", "-"): name for name in kind.model_fields}
    values: dict[str, Any] = {}
    for key, value in item.options.items():
        if key not in fields:
            has = nearest(key, fields) if fields else "it has no options"
            raise InvalidPipeline(f"{item.name} has no option {key!r}", help=has)
        values[fields[key]] = _shaped(kind.model_fields[fields[key]].annotation, value)
    return _validated(kind, values, caret(text, item.place))


class _Builder:
    def __init__(self, text: str, registry: Registry, overrides: Mapping[str, object]) -> None:
        self.text, self.registry, self.overrides = text, registry, overrides
        self.used: set[str] = set()

    def items(self, parsed: Sequence[Item | StagesItem]) -> Iterator[Pass | Group]:
        for item in parsed:
            if isinstance(item, StagesItem):
                yield self.group(item)
            elif item.name in self.registry.presets:
                yield from self.preset(item)
            else:
                yield self.step(item)

    def group(self, item: StagesItem) -> Group:
        steps: list[Pass] = []
        text = self.text
        for inner in item.items:
            for step in list(self.items([inner])):
                if isinstance(step, Group):
                    raise InvalidPipeline(
                        f"{inner.name} has stages(...) of its own, which cannot be nested",
                        help=caret(text, inner.place),
                    )
                if step.whole_model():
                    raise InvalidPipeline(
                        f"{step.name} needs the whole model and cannot run inside stages(...)",
                        help=caret(text, inner.place),
                    )
                if step.whole_regions:
                    raise InvalidPipeline(
                        f"{step.name} needs whole regions and cannot run inside stages(...)",
                        help=caret(text, inner.place),
                    )
                steps.append(step)
        options = Item(STAGES, item.place, item.options)
        order = configure(StageOrder, options, text)
        assert isinstance(order, StageOrder)
        return Group(tuple(steps), order)

    def preset(self, item: Item) -> Iterator[Pass | Group]:
        text = self.registry.presets[item.name]
        if item.options:
            raise InvalidPipeline(
                f"the preset {item.name} takes no options", help=f"write it out: {text}"
            )
        outer, self.text = self.text, text
        yield from self.items(parse(text))
        self.text = outer

    def step(self, item: Item) -> Pass:
        kind = self.registry.find_pass(item.name)
        made = configure(kind, item, self.text)
        taken = {
            k: v for k, v in self.overrides.items() if k.replace("-", "_") in kind.model_fields
        }
        twice = sorted(set(taken) & set(item.options))
        if twice:
            raise InvalidPipeline(
                f"{', '.join(twice)} is given both in the pipeline and as --{twice[0]}",
                help="leave one of them out",
            )
        self.used.update(taken)
        values = {**made.model_dump(), **{k.replace("-", "_"): v for k, v in taken.items()}}
        result = _validated(kind, values, caret(self.text, item.place)) if taken else made
        if not isinstance(result, Pass):
            raise TypeError(f"{item.name} is registered as a pass and is none")
        return result


def _shaped(kind: object, value: str | tuple[str, ...]) -> object:
    """Turn text into what pydantic does not: choices that are no text, none, lists of one."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin in (tuple, list):
        return tuple(_shaped(inside[0], v) for v in ((value,) if isinstance(value, str) else value))
    if origin is Literal:
        return next((choice for choice in inside if option_text(choice) == value), value)
    if origin not in (Union, UnionType):
        return value
    if value == "none" and NoneType in inside and str not in inside:
        return None
    shaped = (_shaped(member, value) for member in inside)
    return next((found for found in shaped if found is not value), value)


def _validated(kind: type[Configured], values: Mapping[str, object], place: str) -> Configured:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part).replace('_', '-') for part in e['loc'])}: {e['msg']}"
            f" (given {e['input']!r})"
            for e in error.errors()
        ]
        raise InvalidPipeline(f"{kind.name} refuses {'; '.join(wrong)}", help=place) from error
