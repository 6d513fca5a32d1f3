"""What is wrong with a class of a plugin as it is written, found before anything runs it.

Python itself would say most of it much later: in the middle of a compile, as a traceback through
code that the writer of the plugin has never seen.
"""

import inspect
from collections.abc import Iterator
from typing import Any

from qdc.ir.annotation import Annotation
from qdc.pipeline.passbase import Configured, Pass

KINDS = ("requires", "provides", "annotates", "consumes")
"""Class variables that are tuples of annotation types."""
OURS = "qdc."


def faults(value: type[Configured]) -> list[str]:
    """All that is wrong with the definition of a pass, a backend or a strategy, in words."""
    return [*_name(value), *_missing(value), *_kinds(value), *_signatures(value)]


def _name(value: type[Configured]) -> Iterator[str]:
    if "name" in value.model_fields:
        yield 'name is declared as an option: write name: ClassVar[str] = "my-name"'
    elif not isinstance(getattr(value, "name", None), str):
        yield 'it has no name: write name: ClassVar[str] = "my-name"'


def _missing(value: type[Configured]) -> Iterator[str]:
    """What the class leaves abstract, and the ``run`` of a pass, which the base only promises."""
    lacking = sorted(getattr(value, "__abstractmethods__", ()))
    if issubclass(value, Pass) and value.run is Pass.run:
        lacking.append("run")
    if lacking:
        yield f"it does not define {', '.join(lacking)}"


def _kinds(value: type[Configured]) -> Iterator[str]:
    """Whether ``requires`` and its like are tuples of annotation types that are whole."""
    seen: set[type[Annotation]] = set()
    for name in KINDS:
        if name in value.model_fields:
            yield f"{name} is declared as an option: write {name}: ClassVar[Kinds] = (...)"
            continue
        kinds = getattr(value, name, ())
        if not isinstance(kinds, tuple):
            yield f"{name} is no tuple of annotation types: write (Orders,) with a comma"
            continue
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Annotation)):
                yield f"{name} names {kind!r}, which is no type of annotation: write (Orders,)"
            elif kind not in seen:
                seen.add(kind)
                yield from _annotation(kind)


def _annotation(kind: type[Annotation]) -> Iterator[str]:
    if "tag" in kind.model_fields:
        yield f'{kind.__name__}.tag is a field: write tag: ClassVar[str] = "my-tag"'
    elif not (getattr(kind, "tag", "") or kind.slot):
        yield f'the annotation {kind.__name__} has no tag: write tag: ClassVar[str] = "my-tag"'
    elif kind.text is Annotation.text and hasattr(kind, "tag"):
        yield f"the annotation {kind.__name__} does not define text(self) -> str"


def _signatures(value: type[Configured]) -> Iterator[str]:
    """Whether each method that stands for one of qdc's can be called as qdc calls it."""
    foreign = [each for each in value.__mro__ if each.__module__.startswith(OURS)]
    written = [each for each in value.__mro__ if each not in foreign]
    for name in dict.fromkeys(name for each in written for name in vars(each)):
        theirs: Any = next((vars(each)[name] for each in foreign if name in vars(each)), None)
        mine = inspect.getattr_static(value, name)
        if name.startswith("_") or not inspect.isfunction(theirs):
            continue
        if not inspect.isfunction(mine):
            yield f"{name} is to be a method, def {name}{inspect.signature(theirs)}"
            continue
        wanted = inspect.signature(theirs).parameters.values()
        given = [None for each in wanted if each.kind is each.POSITIONAL_OR_KEYWORD]
        named = {each.name: None for each in wanted if each.kind is each.KEYWORD_ONLY}
        try:
            inspect.signature(mine).bind(*given, **named)
        except TypeError:
            called = ", ".join(each.name for each in wanted)
            has = ", ".join(inspect.signature(mine).parameters)
            yield f"{name} takes ({has}), and is called with ({called})"
