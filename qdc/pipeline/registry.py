"""The one way from the core to passes, backends, families and strategies: by name.

Each kind has a list of our own and a group of entry points; third parties come in through these,
or through a file that the user names. ``KINDS`` is the whole of it.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeGuard, TypeVar

from qdc.errors import DuplicateName, QdcError, UnknownName, nearest
from qdc.format.codec import Codec, Lowered
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import BUILT_IN
from qdc.ir.tuned import Tuned
from qdc.models.families import Families
from qdc.models.family import Family
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.definition import faults
from qdc.pipeline.passbase import Configured, Pass
from qdc.pipeline.pluginfile import classes_of, import_file, plugin_file
from qdc.pipeline.preset import Preset
from qdc.pipeline.strategybase import Strategy
from qdc.pipeline.syntax import STAGES, is_name
from qdc.stopping import is_stop

C = TypeVar("C", bound=Configured)


@dataclass(frozen=True)
class Kind:
    """One kind of what may be added, by a package or by a file."""

    label: str
    """What messages call one of them."""
    base: type
    """What they are classes of."""
    group: str
    """The group of entry points."""
    built_in: str
    """``module:NAME`` of our own."""
    made: bool = False
    """Whether they are objects that the class has made, and not classes below it."""
    written: bool = False
    """Whether pipeline text names them."""

    def holds(self, value: object) -> TypeGuard[Any]:
        """Whether a value is one of them: named, and not just a base for others."""
        if self.made:
            return isinstance(value, self.base)
        if not (isinstance(value, type) and issubclass(value, self.base)):
            return False
        return isinstance(getattr(value, "name", None), str) and not inspect.isabstract(value)

    def faults(self, value: object) -> list[str]:
        """What is wrong with the definition of a class of this kind; none of what is of another."""
        ours = isinstance(value, type) and issubclass(value, self.base)
        if not (ours and isinstance(value, type) and issubclass(value, Configured)):
            return []
        return faults(value)

    @property
    def page(self) -> str:
        """The page that teaches how to write one."""
        return f"docs/writing_{self.group.removeprefix('qdc.')}.md"


PASSES = Kind("pass", Pass, "qdc.passes", "qdc.passes:PASSES", written=True)
BACKENDS = Kind("backend", Backend, "qdc.backends", "qdc.backends:BACKENDS", written=True)
FAMILIES = Kind("family", Family, "qdc.families", "qdc.models.families:FAMILIES", made=True)
STRATEGIES = Kind(
    "strategy", Strategy, "qdc.strategies", "qdc.runtime.decoding.strategies:STRATEGIES"
)
KINDS = (PASSES, BACKENDS, FAMILIES, STRATEGIES)
"""What third parties may add. A further kind is a line here."""
LABELS = f"{', '.join(kind.label for kind in KINDS[:-1])} or {KINDS[-1].label}"


class Registry:
    """Passes, presets, backends, families, strategies, annotations and codecs, by unique names."""

    def __init__(self) -> None:
        """Start empty; ``standard_registry`` gives the usual content."""
        self.presets: dict[str, Preset] = {}
        """Pipelines by name: our own, and those that passes bring."""
        self.plugins: list[str] = []
        """Name and digest of every plugin file, for the report."""
        self._found: dict[Kind, dict[str, Any]] = {kind: {} for kind in KINDS}
        self._origins: dict[object, str] = {}

    @property
    def passes(self) -> dict[str, type[Pass]]:
        """All passes by name."""
        return self._found[PASSES]

    @property
    def backends(self) -> dict[str, type[Backend]]:
        """All backends by name."""
        return self._found[BACKENDS]

    @property
    def families(self) -> Families:
        """All model families, in the order in which they were added."""
        return Families(tuple(self._found[FAMILIES].values()))

    @property
    def strategies(self) -> dict[str, type[Strategy]]:
        """All decoding strategies by name."""
        return self._found[STRATEGIES]

    def origin(self, value: object) -> str:
        """The plugin file or the entry point that something came from; empty for our own."""
        return self._origins.get(value, "")

    def add(self, value: Any, origin: str = "") -> None:
        """Add a pass, a backend, or what else ``KINDS`` lists.

        Args:
            value: one that its kind ``holds``.
            origin: the file or the entry point that it is from.

        Raises:
            DuplicateName: its name is taken, or one of the architectures of a family; names both
                owners.
        """
        kinds = [kind for kind in KINDS if kind.holds(value)]
        written, owner = any(kind.written for kind in kinds), _owner(value, origin)
        if value.name == STAGES or not is_name(value.name):
            raise QdcError(
                f"pipeline text cannot name a pass or a backend {value.name!r}"
                if written
                else f"no {kinds[0].label} can be called {value.name!r}",
                where=[owner],
                help="name it by words with dashes, such as my-allocate",
            )
        if PASSES.holds(value) and value.name in self.presets:
            raise _duplicate(value.name, f"the preset {value.name}", owner)
        for kind in kinds:
            table = self._found[kind]
            self._refuse_second(value, table.get(value.name), value.name, origin)
            table[value.name] = value
        if PASSES.holds(value):
            self._add_presets(value, owner)
        if isinstance(value, Family):
            for other in self._found[FAMILIES].values():
                for name in set(value.architectures) & set(other.architectures):
                    self._refuse_second(value, other, name, origin)
        self._origins.setdefault(value, origin)

    def _add_presets(self, brought_by: type[Pass], owner: str) -> None:
        """Add the presets of a pass. Raises ``DuplicateName`` for a name that is taken."""
        for name, preset in brought_by.presets.items():
            if self.presets.get(name, preset) is not preset:
                raise _duplicate(name, f"the preset {name}", f"a preset of {owner}")
            if name in self.passes:
                taken = self.passes[name]
                raise _duplicate(name, _owner(taken, self.origin(taken)), f"a preset of {owner}")
            self.presets[name] = preset

    def annotations(self) -> Mapping[str, type[Annotation]]:
        """Every annotation class by tag. Raises ``DuplicateName``."""
        found: dict[str, type[Annotation]] = {}
        for kind in self._annotation_classes():
            if not inspect.isabstract(kind) and hasattr(kind, "tag"):
                self._refuse_second(kind, found.get(kind.tag), "@" + kind.tag)
                found[kind.tag] = kind
        return found

    def codecs(self) -> Mapping[str, type[Codec]]:
        """Every storage format by name. Raises ``DuplicateName``."""
        found: dict[str, type[Codec]] = {}
        for kind in self.annotations().values():
            if issubclass(kind, Lowered):
                codec = kind.codec_class()
                self._refuse_second(codec, found.get(codec.name), codec.name)
                found[codec.name] = codec
        return found

    def find_pass(self, name: str) -> type[Pass]:
        """Look a pass up. Raises ``UnknownName`` with the nearest names."""
        return find_named("pass or preset", name, self.passes, (*self.passes, *self.presets))

    def find_backend(self, name: str) -> type[Backend]:
        """Look a backend up. Raises ``UnknownName`` with the nearest names."""
        return find_named("backend", name, self.backends, self.backends)

    def load_plugin(self, path: Path) -> None:
        """Import a file and add what it defines of the kinds in ``KINDS``.

        Raises:
            QdcError: the file is missing, fails to import, defines nothing of them, or a class in
                it is not whole; all its faults are named.
        """
        module, digest = import_file(path)
        classes = classes_of(module)
        for value in classes:
            if not any(other is not value and issubclass(other, value) for other in classes):
                _require_whole(value, f"{path.name}: class {value.__qualname__}")
        defined = list(_defined_in(module))
        if not defined:
            raise QdcError(
                f"the plugin defines no {LABELS}",
                where=[path.name],
                help="subclass qdc.Pass, as docs/writing_passes.md shows; writing_backends.md, "
                "writing_families.md and writing_strategies.md beside it are on the other kinds",
            )
        for value in defined:
            self.add(value, path.name)
        self.plugins.append(f"{path.name} sha256:{digest}")

    def _refuse_second(self, new: Any, old: Any, name: str, origin: str = "") -> None:
        """Raise ``DuplicateName`` if an owner of the name is there, and another one comes."""
        if old is not None and old is not new:
            raise _duplicate(name, _owner(old, self.origin(old)), _owner(new, origin))

    def _annotation_classes(self) -> Iterator[type[Annotation]]:
        kinds = [k for p in self.passes.values() for k in (*p.provides, *p.requires, *p.annotates)]
        built_in: tuple[type[Annotation], ...] = (*BUILT_IN, Tuned)
        yield from dict.fromkeys((*built_in, *kinds))


def standard_registry(plugins: Sequence[Path] = ()) -> Registry:
    """Built-ins, installed entry points, then the given files. Raises ``DuplicateName``."""
    registry = Registry()
    registry.presets.update(import_module("qdc.passes").PRESETS)
    for kind in KINDS:
        place, _, listed = kind.built_in.partition(":")
        for value in getattr(import_module(place), listed):
            registry.add(value)
    for kind in KINDS:
        for entry in entry_points(group=kind.group):
            registry.add(_installed(entry), entry.value)
    for path in plugins:
        registry.load_plugin(path)
    registry.codecs()
    return registry


def _installed(entry: EntryPoint) -> Any:
    """Import what an entry point names. Raises ``QdcError``."""
    try:
        value = entry.load()
    except BaseException as error:  # as of a module that calls sys.exit
        if is_stop(error):
            raise
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        raise QdcError(
            f"the installed plugin {entry.value} does not import: {what}",
            help="uninstall or repair the package that provides it",
        ) from error
    if not any(kind.holds(value) for kind in KINDS):
        raise QdcError(
            f"the installed plugin {entry.value} is no {LABELS} with a name",
            help="repair or uninstall the package that provides it",
        )
    _require_whole(value, entry.value)
    return value


def _require_whole(value: object, owner: str) -> None:
    """Raise ``QdcError`` with all that is wrong with a class as it is written."""
    for kind in KINDS:
        wrong = kind.faults(value)
        if wrong:
            raise QdcError(
                f"the {kind.label} cannot be used: {'; '.join(wrong)}",
                where=[owner],
                help=f"{kind.page} shows how one is written",
            )


def find_named(
    label: str, name: str, table: Mapping[str, type[C]], known: Iterable[str]
) -> type[C]:
    """Look a name up. Raises ``UnknownName`` with the nearest of those that are ``known``."""
    if name not in table:
        raise UnknownName(f"no {label} is called {name!r}", help=nearest(name, known))
    return table[name]


def _duplicate(name: str, *owners: str) -> DuplicateName:
    return DuplicateName(
        f"two owners claim the name {name!r}",
        where=owners,
        help="rename one of them, or leave one out",
    )


def _owner(value: Any, origin: str = "") -> str:
    if isinstance(value, type):
        file = plugin_file(value)
        return (
            f"{value.__qualname__} of {file}"
            if file
            else f"{value.__module__}.{value.__qualname__}"
        )
    return f"the family {value.name} of {origin or 'qdc'}"


def _defined_in(module: ModuleType) -> Iterator[Any]:
    """Classes of the module's own, and objects under a name of it, each once."""
    seen: set[int] = set()
    for value in vars(module).values():
        foreign = isinstance(value, type) and value.__module__ != module.__name__
        if not foreign and id(value) not in seen and any(kind.holds(value) for kind in KINDS):
            seen.add(id(value))
            yield value
