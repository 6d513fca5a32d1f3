"""Commands whose parameters are the fields of options: names, defaults and texts stand there."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from qdc.options import Options, Spelling

CONTEXT = "context"


def from_fields(command: Callable[..., None]) -> Callable[..., None]:
    """Put the fields of ``Options`` in place of each parameter that is annotated with them.

    The command gets the options that were given, checked; those that were not take the defaults of
    the fields, and are known as not given.
    """
    signature = inspect.signature(command)
    kinds: dict[str, type[Options]] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if inspect.isclass(parameter.annotation) and issubclass(parameter.annotation, Options)
    }
    own = inspect.Parameter(CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    parameters = {CONTEXT: own}
    for name, parameter in signature.parameters.items():
        if name in kinds:
            parameters |= {each.name: each for each in _parameters(kinds[name])}
        else:
            parameters[name] = parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)

    def run(context: typer.Context, **values: Any) -> None:
        asked = {
            name: kind.read(_given(kind, context, values), _called(kind))
            for name, kind in kinds.items()
        }
        rest = {name: values[name] for name in signature.parameters if name in values}
        if CONTEXT in signature.parameters:
            rest[CONTEXT] = context
        command(**asked, **rest)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=list(parameters.values())
    )
    return run


def _parameters(kind: type[Options]) -> Iterator[inspect.Parameter]:
    for name, field, spelled in kind.listed():
        info = _argument(field, spelled) if spelled.argument else _option(name, field, spelled)
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else _default(field, spelled),
            annotation=Annotated[_type(field, spelled), info],
        )


def _argument(field: FieldInfo, spelled: Spelling) -> Any:
    return typer.Argument(metavar=spelled.metavar, help=_help(field, spelled))


def _option(name: str, field: FieldInfo, spelled: Spelling) -> Any:
    bounds = {}
    if spelled.ranged:
        bounds = {"min": _bound(field, Ge, "ge"), "max": _bound(field, Le, "le")}
    return typer.Option(
        *_flags(name, spelled),
        metavar=spelled.metavar or None,
        help=_help(field, spelled),
        **bounds,
    )


def _flags(name: str, spelled: Spelling) -> tuple[str, ...]:
    return spelled.names or (f"--{name.replace('_', '-')}",)


def _called(kind: type[Options]) -> dict[str, str]:
    """How the command line calls each field: by its longest flag, or by what stands for it."""
    return {
        name: spelled.metavar if spelled.argument else max(_flags(name, spelled), key=len)
        for name, _, spelled in kind.listed()
    }


def _help(field: FieldInfo, spelled: Spelling) -> str:
    return spelled.help or (field.description or "").partition("\n")[0]


def _bound(field: FieldInfo, kind: type[Ge] | type[Le], name: str) -> Any:
    return next((getattr(each, name) for each in field.metadata if isinstance(each, kind)), None)


def _type(field: FieldInfo, spelled: Spelling) -> Any:
    """What the parser makes of the text; all else is up to the field."""
    annotation: Any = field.annotation
    optional = False
    if get_origin(annotation) in (Union, UnionType):
        members = [each for each in get_args(annotation) if each is not NoneType]
        annotation, optional = members[0], True
    many = get_origin(annotation) is tuple
    if many and spelled.repeated:
        inside = get_args(annotation)[0]
        listed: Any = list[inside]  # type: ignore[valid-type]
        return listed if field.is_required() else listed | None
    if many or spelled.verbatim or get_origin(annotation) is Literal:
        annotation = str
        optional = optional or (many and not field.default)
    return annotation | None if optional else annotation


def _default(field: FieldInfo, spelled: Spelling) -> Any:
    default = field.default
    if spelled.shown:
        return spelled.shown
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or None
    if isinstance(default, bool):
        return False
    return default


def _given(
    kind: type[Options], context: typer.Context, values: Mapping[str, Any]
) -> dict[str, Any]:
    """Values of the command line by the names of the fields."""
    found = {}
    for name, field, _ in kind.listed():
        source = context.get_parameter_source(name)
        if source is not None and source.name != "DEFAULT":
            value = values[name]
            found[name] = not value if field.default is True else value
    return found
