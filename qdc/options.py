"""What a user may ask of a command: named, given a default and described in one place.

An option is a field of a frozen model. The Python interface takes its keywords, its signature and
its documentation from the fields, and the command line its flags and the texts of ``--help``.
"""

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from qdc.errors import QdcError, nearest

PathLike = str | Path
"""A path as Python callers may give it."""
SPELLING = "spelling"
WIDTH = 96


@dataclass(frozen=True)
class Spelling:
    """How the command line writes an option."""

    metavar: str = ""
    """What stands for its value in ``--help``; switches have none."""
    names: tuple[str, ...] = ()
    """``-o``, ``--out``; the name of the field with dashes if not given."""
    help: str = ""
    """For a switch that turns off what the field turns on; else the field's own first line."""
    argument: bool = False
    """Whether it stands alone, without a name in front."""
    repeated: bool = False
    """Whether a list is given value by value; else its values are one text with commas."""
    verbatim: bool = False
    """Whether the parser leaves its text to the field's own validator, as of sizes."""
    ranged: bool = False
    """Whether the bounds of a number are shown, and checked by the parser."""
    shown: str = ""
    """How its default is written, where the value itself would not be read easily."""
    before: str = ""
    """The field in front of which it is listed, where a class extends another; else the end."""


def option(metavar: str, text: str, *names: str, more: str = "", **spelling: Any) -> Any:
    """Describe a field that is an option of the command line too, within ``Annotated``.

    Args:
        metavar: what stands for its value in ``--help``.
        text: the line of ``--help``.
        names: its flags, if they are not the field's name.
        more: what ``--help`` has no room for.
        spelling: further fields of ``Spelling``.
    """
    spelled = asdict(Spelling(metavar, names, **spelling))
    description = f"{text}\n{more}".rstrip()
    return Field(description=description, json_schema_extra={SPELLING: spelled})


def switch(text: str, *names: str, more: str = "", **spelling: Any) -> Any:
    """Describe a field that is true or false. Arguments as for ``option``."""
    return option("", text, *names, more=more, **spelling)


def spelling(field: FieldInfo) -> Spelling | None:
    """How the command line writes a field; None if it has no such option."""
    extra = field.json_schema_extra
    if not isinstance(extra, Mapping) or SPELLING not in extra:
        return None
    return Spelling(**extra[SPELLING])  # type: ignore[arg-type]


def as_paths(given: object) -> object:
    """One path where several may stand, for a validator."""
    return (given,) if isinstance(given, str | Path) else given


def as_list(given: object) -> object:
    """``a,b`` where a list may stand, for a validator."""
    if not isinstance(given, str):
        return given
    return tuple(part.strip() for part in given.split(",")) if given else ()


class Options(BaseModel):
    """A command's options; a field with a ``Spelling`` is one of the command line as well."""

    # Built when it is first used: ``qdc --help`` needs the fields alone, and answers at once.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)

    refusal: ClassVar[str] = "that cannot be asked for"
    """What is said of values that do not fit."""
    manual: ClassVar[str] = ""
    """Where the options are explained."""
    positional: ClassVar[tuple[str, ...]] = ()
    """Fields that Python takes without their names."""

    @classmethod
    def parse(cls, **given: Any) -> Self:
        """Build options from values that a user gave. Raises ``QdcError`` naming what is wrong."""
        return cls.read(given, {})

    @classmethod
    def read(cls, given: Mapping[str, Any], called: Mapping[str, str]) -> Self:
        """Build options from values, by the names of the fields.

        Args:
            given: the values.
            called: how the user called a field, where it was not by its name.

        Raises:
            QdcError: naming what is wrong, as the user called it.
        """
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise QdcError(
                cls.refusal,
                where=[cls._sentence(problem, called) for problem in error.errors()],
                help=cls.manual,
            ) from error

    @classmethod
    def from_call(cls, function: str, /, *given: Any, **named: Any) -> Self:
        """Options of a call in Python; a ready object stands for all of them.

        Raises:
            TypeError: an argument is unknown, lacking, or given twice.
            QdcError: a value does not fit.
        """
        if len(given) == 1 and isinstance(given[0], cls) and not named:
            return given[0]
        for name in sorted(named.keys() - cls.model_fields.keys()):
            near = nearest(name, cls.model_fields)
            raise TypeError(f"{function}: no argument is called {name!r}; {near}")
        try:
            bound = cls.signature().bind(*given, **named)
        except TypeError as error:
            raise TypeError(f"{function}: {error}") from None
        return cls.parse(**bound.arguments)

    @classmethod
    def ordered(cls) -> list[str]:
        """Names of the fields as they are listed: by their place in the class, or by ``before``."""
        order: list[str] = []
        for name, field in cls.model_fields.items():
            spelled = spelling(field)
            before = "" if spelled is None else spelled.before
            order.insert(order.index(before) if before else len(order), name)
        return order

    @classmethod
    def listed(cls) -> Iterator[tuple[str, FieldInfo, Spelling]]:
        """Fields that the command line has, in the order of its help."""
        for name in cls.ordered():
            field = cls.model_fields[name]
            spelled = spelling(field)
            if spelled is not None:
                yield name, field, spelled

    @classmethod
    def signature(cls) -> inspect.Signature:
        """What a function takes that asks for the fields: the ``positional`` ones first."""
        names = (*cls.positional, *(n for n in cls.ordered() if n not in cls.positional))
        return inspect.Signature([cls._parameter(name) for name in names])

    @classmethod
    def _parameter(cls, name: str) -> inspect.Parameter:
        field, named = cls.model_fields[name], name not in cls.positional
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY if named else inspect.Parameter.POSITIONAL_OR_KEYWORD,
            default=inspect.Parameter.empty if field.is_required() else field.default,
        )

    @classmethod
    def documentation(cls) -> str:
        """The fields and what they mean, as the ``Args`` of a docstring."""
        return "\n".join(
            textwrap.fill(
                f"{name}: {' '.join(_sentences(cls.model_fields[name].description or ''))}",
                WIDTH,
                initial_indent=" " * 8,
                subsequent_indent=" " * 12,
                break_on_hyphens=False,
            )
            for name in cls.ordered()
        )

    def call(self, function: str) -> str:
        """The call in Python that asks for this, as in ``qdc.compile(model_dir='m', out='o')``."""
        given = self.model_dump(mode="json", exclude_unset=True)
        return f"{function}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

    @classmethod
    def _sentence(cls, problem: Mapping[str, Any], called: Mapping[str, str]) -> str:
        place, text = ".".join(map(str, problem["loc"])), str(problem["msg"])
        if problem["loc"] and problem["loc"][0] in called:
            place = called[problem["loc"][0]]
        if problem["type"] == "extra_forbidden":
            return f"no option is called {place!r}; {nearest(place, cls.model_fields)}"
        text = text.removeprefix("Value error, ")
        return f"{place}: {text[:1].lower()}{text[1:]}" if place else text


def _sentences(description: str) -> Iterator[str]:
    for line in description.split("\n"):
        yield line if line.endswith(".") else f"{line}."
