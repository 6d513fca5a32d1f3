"""The methods that a user names: presets, pipelines, and labels for them.

Pipelines are separated by commas as their passes are. A pipeline ends where something is packed: a
preset that packs is one by itself, and ``stages(...),pack`` are two items of one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from qdc.errors import InvalidPipeline, UnknownName, nearest
from qdc.ir.annotations import Packed
from qdc.pipeline.builder import build_plan
from qdc.pipeline.passbase import Pass
from qdc.pipeline.plan import Plan, check_order
from qdc.pipeline.preset import Preset
from qdc.pipeline.registry import Registry
from qdc.pipeline.syntax import Item, Labelled, StagesItem, parse, parse_list

ALL = "all"
"""Stands for every preset."""
BACKEND = "reference"


@dataclass(frozen=True)
class Method:
    """One pipeline, and what it is called in tables."""

    name: str
    pipeline: str
    """As it was written."""
    plan: Plan
    nominal_bits: float | None = None
    """Bits a weight as the publication counts them."""
    source: str = ""


def parse_methods(texts: Sequence[str], registry: Registry) -> tuple[Method, ...]:
    """Read lists of methods, and check each of them as far as can be without a model.

    Args:
        texts: as in ``default,mine=stages(calibrate-mcs,rtn-lower),pack``.
        registry: where names are looked up.

    Raises:
        UnknownName: a name is unknown; with the nearest ones.
        InvalidPipeline: text that does not parse, a bad option, or one name for two pipelines.
        MissingAnnotation: a pipeline whose passes do not find what they read.
    """
    found: dict[str, Method] = {}
    for text in texts:
        for method in _methods(parse_list(text), registry):
            other = found.setdefault(method.name, method)
            if other.pipeline != method.pipeline:
                raise InvalidPipeline(
                    f"two methods are called {method.name!r}",
                    where=[other.pipeline, method.pipeline],
                    help="give each a label of its own: LABEL=pipeline",
                )
    if not found:
        raise InvalidPipeline("no method is named", help="--methods default,best, or all")
    return tuple(found.values())


def _methods(items: Sequence[Labelled], registry: Registry) -> Iterator[Method]:
    pending: list[Labelled] = []
    for written in items:
        if pending and written.label:
            yield _method(pending, registry)
            pending = []
        item = written.item
        if not pending and isinstance(item, Item) and _is_all(written, item, registry):
            for name, preset in registry.presets.items():
                yield _preset(name, name, preset, registry)
            continue
        pending.append(written)
        if _packs(item, registry):
            yield _method(pending, registry)
            pending = []
    if pending:
        yield _method(pending, registry)


def _is_all(written: Labelled, item: Item, registry: Registry) -> bool:
    taken = item.name in registry.presets or item.name in registry.passes
    return item.name == ALL and not taken and not written.label and not item.options


def _packs(item: Item | StagesItem, registry: Registry) -> bool:
    """Whether a pipeline is whole with this item. Raises ``UnknownName``."""
    if isinstance(item, StagesItem):
        return False
    if item.name in registry.presets:
        last = parse(registry.presets[item.name].text)[-1]
        return _packs(last, registry)
    if item.name not in registry.passes:
        known = (*registry.presets, *registry.passes, ALL)
        raise UnknownName(
            f"no method, preset or pass is called {item.name!r}", help=nearest(item.name, known)
        )
    return any(issubclass(kind, Packed) for kind in registry.passes[item.name].provides)


def _method(items: Sequence[Labelled], registry: Registry) -> Method:
    text = ",".join(written.text for written in items)
    name = items[0].label or text
    [first, *rest] = items
    if not rest and isinstance(first.item, Item) and first.item.name in registry.presets:
        return _preset(name, text, registry.presets[first.item.name], registry)
    return Method(name, text, checked(build_plan(text, registry), registry))


def _preset(name: str, text: str, preset: Preset, registry: Registry) -> Method:
    plan = checked(build_plan(text, registry), registry)
    return Method(name, text, plan, preset.nominal_bits, preset.source)


def checked(plan: Plan, registry: Registry) -> Plan:
    """The plan, if its passes and the backend find what they read. Raises ``MissingAnnotation``."""
    backend = registry.find_backend(BACKEND)
    check_order(plan, final=backend.requires, backend=backend.name)
    return plan


def taken(plan: Plan, options: Sequence[str]) -> set[str]:
    """Those options that some pass of a plan reads: a compile refuses any other."""
    return {name for name in options if steps_with(plan, name)}


def written(text: str, registry: Registry) -> set[str]:
    """Options that pipeline text gives to its passes, those of its presets among them."""
    found: set[str] = set()
    for item in parse(text):
        for each in item.items if isinstance(item, StagesItem) else (item,):
            found.update(option.replace("-", "_") for option in each.options)
            if each.name in registry.presets:
                found |= written(registry.presets[each.name].text, registry)
    return found


def overrides(
    plan: Plan, text: str, given: Mapping[str, object], registry: Registry
) -> tuple[dict[str, object], tuple[str, ...]]:
    """Which of the given options a pipeline takes, and in words what it does not.

    One that the pipeline itself writes stays as it is written.
    """
    own = written(text, registry)
    has = taken(plan, list(given))
    used = {name: value for name, value in given.items() if name in has - own}
    notes = [f"it writes its own {name}" for name in given if name in has & own]
    return used, tuple(notes)


def steps_with(plan: Plan, option: str) -> list[Pass]:
    """Passes of a plan that read an option, by its name in pipeline text or as a field."""
    field = option.replace("-", "_")
    return [
        step
        for step in plan.passes()
        if field in type(step).model_fields and field not in step.idle
    ]
