"""``--vary option=a,b``: each method that has the option is run once with each value."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product

from qdc.comparing.methods import Method, checked, steps_with, written
from qdc.errors import InvalidPipeline, QdcError, UnknownName, nearest
from qdc.pipeline.builder import configured
from qdc.pipeline.passbase import Pass, option_text
from qdc.pipeline.plan import Group, Plan
from qdc.pipeline.registry import Registry
from qdc.pipeline.syntax import Item

HOW = "--vary geometry=clean,mcs"


@dataclass(frozen=True)
class Axis:
    """An option of passes, by its name in pipeline text, and the values that it takes in turn."""

    option: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """A method with one value of each axis that it has."""

    method: Method
    settings: Mapping[str, str] = field(default_factory=dict)
    pipeline: str = ""
    """Text; empty if the values are refused, and ``error`` says why."""
    plan: Plan | None = None
    lacks: tuple[str, ...] = ()
    """Options that no pass of it has."""
    error: str = ""
    dropped: tuple[str, ...] = ()
    """Options that a pass does not take together with the values, and that were left out."""
    kept: tuple[str, ...] = ()
    """Options that all methods are given, and that this one's own text writes."""

    @property
    def name(self) -> str:
        """``gptq geometry=clean``."""
        return " ".join((self.method.name, *(f"{k}={v}" for k, v in self.settings.items())))


def parse_axis(text: str) -> Axis:
    """Read ``option=a,b``. Raises ``InvalidPipeline``."""
    option, equals, values = text.partition("=")
    found = tuple(dict.fromkeys(value.strip() for value in values.split(",") if value.strip()))
    if not equals or not option.strip() or len(found) < 2:
        raise InvalidPipeline(
            f"--vary {text!r} names no option with two values or more", help=f"as in {HOW}"
        )
    return Axis(option.strip().replace("_", "-"), found)


def variants(
    methods: Sequence[Method],
    axes: Sequence[Axis],
    registry: Registry,
    given: Mapping[str, str] | None = None,
) -> tuple[Variant, ...]:
    """Every method with every value of the axes that it has.

    Args:
        methods: what is varied.
        axes: options, each with its values.
        registry: where names are looked up.
        given: options, by their names in pipeline text, that go to every pass that has them; where
            a pipeline writes its own value, that stays.

    Raises:
        UnknownName: no method has an option of that name.
        InvalidPipeline: every method that has the option refuses a value, or one axis stands twice.
    """
    shared = given or {}
    names = [axis.option for axis in axes]
    if len(set(names)) < len(names):
        raise InvalidPipeline("--vary names one option twice", help="give all values in one list")
    for axis in axes:
        if not any(steps_with(method.plan, axis.option) for method in methods):
            known = {
                name.replace("_", "-")
                for method in methods
                for step in method.plan.passes()
                for name in type(step).model_fields
            }
            raise UnknownName(
                f"--vary: no pass of any method has an option {axis.option!r}",
                help=nearest(axis.option, known),
            )
    found = tuple(each for method in methods for each in _of(method, axes, registry, shared))
    for axis in axes:
        for value in axis.values:
            mine = [each for each in found if each.settings.get(axis.option) == value]
            _refuse_useless(mine, f"--vary {axis.option}={value}")
    for option, value in shared.items():
        mine = [e for e in found if steps_with(e.method.plan, option) and option not in e.kept]
        _refuse_useless(mine, f"--{option} {value}")
    return found


def _refuse_useless(found: Sequence[Variant], what: str) -> None:
    """Raise ``InvalidPipeline`` where all that have an option refuse its value."""
    if found and all(each.error for each in found):
        raise InvalidPipeline(
            f"{what}: no method can be run with it",
            where=[each.name for each in found],
            help=found[0].error,
        )


def _of(
    method: Method, axes: Sequence[Axis], registry: Registry, given: Mapping[str, str]
) -> Iterator[Variant]:
    mine = [axis for axis in axes if steps_with(method.plan, axis.option)]
    lacks = tuple(axis.option for axis in axes if axis not in mine)
    own = written(method.pipeline, registry) if given else set()
    there = {k: v for k, v in given.items() if steps_with(method.plan, k)}
    kept = tuple(name for name in there if name.replace("-", "_") in own)
    shared = {name: value for name, value in there.items() if name not in kept}
    if not mine and not shared:
        yield Variant(method, {}, method.pipeline, method.plan, lacks, kept=kept)
        return
    for values in product(*(axis.values for axis in mine)):
        settings = {axis.option: value for axis, value in zip(mine, values, strict=True)}
        dropped: list[str] = []
        try:
            plan = checked(_changed(method.plan, {**shared, **settings}, dropped), registry)
        except QdcError as error:
            yield Variant(method, settings, lacks=lacks, error=str(error))
        else:
            left_out = tuple(dict.fromkeys(dropped))
            yield Variant(method, settings, str(plan), plan, lacks, dropped=left_out, kept=kept)


def _changed(plan: Plan, settings: Mapping[str, str], dropped: list[str]) -> Plan:
    return Plan(
        tuple(
            replace(item, passes=tuple(_set(step, settings, dropped) for step in item.passes))
            if isinstance(item, Group)
            else _set(item, settings, dropped)
            for item in plan.items
        )
    )


def _set(step: Pass, settings: Mapping[str, str], dropped: list[str]) -> Pass:
    """The pass with other values of the options that it has.

    Where it refuses them beside one other option of its own or two, as ``geometry=clean`` refuses a
    ``prefix`` that only masks have, and ``feedback=false`` both ``rounds`` and ``sweeps``, these
    are left out and noted in ``dropped``.

    Raises ``InvalidPipeline``.
    """
    fields = {name.replace("_", "-") for name in type(step).model_fields}
    given: dict[str, str | tuple[str, ...]] = {k: v for k, v in settings.items() if k in fields}
    read = {k: v for k, v in given.items() if k.replace("-", "_") not in step.idle}
    if not read:
        return step
    text = f"{step.name}{{{' '.join(f'{key}={value}' for key, value in given.items())}}}"
    item, own = Item(step.name, 0, given), step.model_dump()
    try:
        return _made(step, item, text, own)
    except InvalidPipeline:
        if read != given:  # nothing reads the others, whatever else is set
            return _set(step, {key: settings[key] for key in read}, dropped)
        options = step.options()
        for names in (*combinations(options, 1), *combinations(options, 2)):
            left_out = {name.replace("-", "_") for name in names}
            rest = {key: kept for key, kept in own.items() if key not in left_out}
            with contextlib.suppress(InvalidPipeline):
                made = _made(step, item, text, rest)
                dropped.extend(f"{name}={option_text(options[name])}" for name in names)
                return made
        raise


def _made(step: Pass, item: Item, text: str, given: Mapping[str, object]) -> Pass:
    made = configured(type(step), item, text, given)
    assert isinstance(made, Pass)
    return made
