"""From pipeline text to a plan of configured passes: names, options, presets, overrides."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from qdc.errors import InvalidPipeline, nearest
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.passbase import Configured, Pass, option_text
from qdc.pipeline.plan import Group, Plan, StageOrder
from qdc.pipeline.registry import Registry
from qdc.pipeline.syntax import STAGES, Item, StagesItem, caret, parse, parse_item


def build_plan(
    text: str,
    registry: Registry,
    overrides: Mapping[str, object] | None = None,
    preferred: Mapping[str, object] | None = None,
) -> Plan:
    """Parse a pipeline, expand its presets, configure its passes.

    Args:
        text: as in ``default`` or ``stages(calibrate-mcs{samples=64},...),pack``.
        registry: where names are looked up.
        overrides: option values that go to every pass that has such an option.
        preferred: the same where neither the text nor an override gives one, and only where some
            pass has it.

    Raises:
        InvalidPipeline: bad text, a bad option, or an override that no pass takes.
        UnknownName: an unknown pass, with the nearest names.
    """
    wanted, usual = (
        {key: value for key, value in (given or {}).items() if value is not None}
        for given in (overrides, preferred)
    )
    builder = _Builder(text, registry, wanted, usual)
    plan = Plan(tuple(builder.items(parse(text))))
    unused = sorted(set(wanted) - builder.used)
    if unused:
        raise InvalidPipeline(
            f"no pass of the pipeline takes {', '.join('--' + key for key in unused)}",
            help=f"leave out what it does not take; the pipeline is {plan}",
        )
    return plan


def build_backend(text: str, registry: Registry) -> Backend:
    """Make a backend from ``name`` or ``name{option=value}``.

    Raises:
        InvalidPipeline: bad text or a bad option.
        UnknownName: an unknown backend, with the nearest names.
    """
    item = parse_item(text)
    backend = configured(registry.find_backend(item.name), item, text)
    if not isinstance(backend, Backend):
        raise TypeError(f"{item.name} is registered as a backend and is none")
    return backend


def configured(
    kind: type[Configured], item: Item, text: str, given: Mapping[str, object] | None = None
) -> Configured:
    """Make what ``item`` names from its parsed options, and from values by the names of fields.

    Raises ``InvalidPipeline`` with a caret into ``text``.
    """
    fields = {name.replace("_", "-"): name for name in kind.model_fields}
    values: dict[str, Any] = {}
    for key, value in item.options.items():
        if key not in fields:
            has = nearest(key, fields) if fields else "it has no options"
            raise InvalidPipeline(f"{item.name} has no option {key!r}", help=has)
        values[fields[key]] = _shaped(kind.model_fields[fields[key]].annotation, value)
    return _validated(kind, {**(given or {}), **values}, caret(text, item.place))


def _handed_on(
    parsed: Sequence[Item | StagesItem], taker: str, options: Mapping[str, str | tuple[str, ...]]
) -> Iterator[Item | StagesItem]:
    """The items with options of a preset at the pass that takes them, before its own."""
    for item in parsed:
        if isinstance(item, StagesItem):
            inside = [_with(each, taker, options) for each in item.items]
            yield replace(item, items=tuple(inside))
        else:
            yield _with(item, taker, options)


def _with(item: Item, taker: str, options: Mapping[str, str | tuple[str, ...]]) -> Item:
    return replace(item, options={**item.options, **options}) if item.name == taker else item


class _Builder:
    def __init__(
        self,
        text: str,
        registry: Registry,
        overrides: Mapping[str, object],
        preferred: Mapping[str, object],
    ) -> None:
        self.text, self.registry = text, registry
        self.overrides, self.preferred = overrides, preferred
        self.used: set[str] = set()

    def items(self, parsed: Sequence[Item | StagesItem]) -> Iterator[Pass | Group]:
        for item in parsed:
            if isinstance(item, StagesItem):
                yield self.group(item)
            elif item.name in self.registry.presets:
                yield from self.preset(item)
            else:
                yield self.alone(item)

    def alone(self, item: Item) -> Pass:
        step = self.step(item)
        if step.only_in_stages:
            raise InvalidPipeline(
                f"{step.name} reads what the layers before have lost, and outside stages(...) "
                "nothing has been",
                help=caret(self.text, item.place),
            )
        return step

    def group(self, item: StagesItem) -> Group:
        steps: list[Pass] = []
        text = self.text
        for inner in item.items:
            preset = inner.name in self.registry.presets
            for step in list(self.preset(inner)) if preset else [self.step(inner)]:
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
        order = configured(StageOrder, options, text)
        assert isinstance(order, StageOrder)
        return Group(tuple(steps), order)

    def preset(self, item: Item) -> Iterator[Pass | Group]:
        preset = self.registry.presets[item.name]
        if item.options and not preset.takes:
            raise InvalidPipeline(
                f"the preset {item.name} takes no options", help=f"write it out: {preset.text}"
            )
        outer, self.text = self.text, preset.text
        yield from self.items(tuple(_handed_on(parse(preset.text), preset.takes, item.options)))
        self.text = outer

    def step(self, item: Item) -> Pass:
        kind = self.registry.find_pass(item.name)
        made = configured(kind, item, self.text)
        read = set(kind.model_fields) - made.idle if isinstance(made, Pass) else set()
        fields = {name.replace("_", "-") for name in read}
        taken = {k: v for k, v in self.overrides.items() if k.replace("_", "-") in fields}
        twice = sorted(set(taken) & set(item.options))
        if twice:
            raise InvalidPipeline(
                f"{', '.join(twice)} is given both in the pipeline and as --{twice[0]}",
                help="leave one of them out",
            )
        self.used.update(taken)
        for key, value in self.preferred.items():
            if key in fields and key not in item.options:
                taken.setdefault(key, value)
        values = {**made.model_dump(), **{k.replace("-", "_"): v for k, v in taken.items()}}
        _refuse_values(kind, values, taken)
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


def _refuse_values(
    kind: type[Configured], values: Mapping[str, object], taken: Mapping[str, object]
) -> None:
    """Refuse what was given as an option of the command, not in the text that names the pass.

    Raises ``InvalidPipeline`` that names the options and the nearest values that the pass takes.
    """
    try:
        kind.model_validate(dict(values))
    except ValidationError as error:
        fields = {name.replace("-", "_"): name for name in taken}
        found = [e for e in error.errors() if e["loc"] and e["loc"][0] in fields]
        wrong = [f"--{fields[str(e['loc'][0])]} {e['input']}" for e in found]
        if wrong:
            raise InvalidPipeline(
                f"{kind.name} does not take {' and '.join(wrong)}",
                help="; ".join(_nearest_value(f"--{fields[str(e['loc'][0])]}", e) for e in found),
            ) from error


def _nearest_value(option: str, error: Mapping[str, Any]) -> str:
    """``the least is --samples 1``; what pydantic says, where the reason is no bound."""
    bounds = error.get("ctx", {})
    for name, text, step in (
        ("ge", "least", 0), ("gt", "least", 1), ("le", "largest", 0), ("lt", "largest", -1),
    ):  # fmt: skip
        if isinstance(bounds.get(name), int):
            return f"the {text} is {option} {bounds[name] + step}"
    said = str(error["msg"])
    return f"{option}: {said[:1].lower()}{said[1:]}"


def _validated(kind: type[Configured], values: Mapping[str, object], place: str) -> Configured:
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        wrong = "; ".join(map(_refused, error.errors()))
        raise InvalidPipeline(f"{kind.name} refuses {wrong}", help=place) from error


def _refused(problem: Mapping[str, Any]) -> str:
    """One option and what is wrong with it; options that do not go together have no name."""
    said = str(problem["msg"]).removeprefix("Value error, ")
    option = ".".join(str(part).replace("_", "-") for part in problem["loc"])
    return f"{option}: {said} (given {problem['input']!r})" if option else f"its options: {said}"
