"""The one way from the core to passes and backends: by name.

Built-ins are listed in ``qdc.passes.PASSES`` and ``qdc.backends.BACKENDS``; third parties come in
through the entry-point groups of the same names, or through a file that the user names.
"""

import hashlib
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import TypeGuard, TypeVar

from qdc.errors import DuplicateName, QdcError, UnknownName, nearest
from qdc.format.codec import Codec, Lowered
from qdc.ir.annotations import BUILT_IN, Annotation
from qdc.ir.tuned import Tuned
from qdc.pipeline.backendbase import Backend
from qdc.pipeline.passbase import Configured, Pass
from qdc.pipeline.syntax import STAGES, is_name

C = TypeVar("C", bound=Configured)


class Registry:
    """Passes, presets, backends, annotation classes and codecs, each under a unique name."""

    def __init__(self) -> None:
        """Start empty; ``standard_registry`` gives the usual content."""
        self.passes: dict[str, type[Pass]] = {}
        self.backends: dict[str, type[Backend]] = {}
        self.presets: dict[str, str] = {}
        self.plugins: list[str] = []
        """Name and digest of every plugin file, for the report."""

    def add(self, kind: type[Configured]) -> None:
        """Add a pass or a backend. Raises ``DuplicateName`` naming both owners."""
        if kind.name == STAGES or not is_name(kind.name):
            raise QdcError(
                f"pipeline text cannot name a pass or a backend {kind.name!r}",
                where=[_owner(kind)],
                help="name it by a verb with dashes, such as my-allocate",
            )
        if kind.name in self.presets:
            raise _duplicate(kind.name, f"the preset {kind.name}", _owner(kind))
        for table, base in ((self.passes, Pass), (self.backends, Backend)):
            if issubclass(kind, base):
                _refuse_second(kind, table.get(kind.name))
                table[kind.name] = kind  # type: ignore[assignment]

    def annotations(self) -> Mapping[str, type[Annotation]]:
        """Every annotation class by tag. Raises ``DuplicateName``."""
        found: dict[str, type[Annotation]] = {}
        for kind in self._annotation_classes():
            if not inspect.isabstract(kind) and hasattr(kind, "tag"):
                _refuse_second(kind, found.get(kind.tag), label="@" + kind.tag)
                found[kind.tag] = kind
        return found

    def codecs(self) -> Mapping[str, type[Codec]]:
        """Every storage format by name. Raises ``DuplicateName``."""
        found: dict[str, type[Codec]] = {}
        for kind in self.annotations().values():
            if issubclass(kind, Lowered):
                codec = kind.codec_class()
                _refuse_second(codec, found.get(codec.name), label=codec.name)
                found[codec.name] = codec
        return found

    def find_pass(self, name: str) -> type[Pass]:
        """Look a pass up. Raises ``UnknownName`` with the nearest names."""
        return _find("pass or preset", name, self.passes, (*self.passes, *self.presets))

    def find_backend(self, name: str) -> type[Backend]:
        """Look a backend up. Raises ``UnknownName`` with the nearest names."""
        return _find("backend", name, self.backends, self.backends)

    def load_plugin(self, path: Path) -> None:
        """Import a file and add the passes and backends that it defines.

        Raises:
            QdcError: the file is missing, fails to import, or defines neither.
        """
        module, digest = _import_file(path)
        kinds = list(_defined_in(module))
        if not kinds:
            raise QdcError(
                "the plugin defines neither a pass nor a backend",
                where=[path.name],
                help="subclass qdc.Pass, as docs/writing_passes.md shows",
            )
        for kind in kinds:
            self.add(kind)
        self.plugins.append(f"{path.name} sha256:{digest}")

    def _annotation_classes(self) -> Iterator[type[Annotation]]:
        kinds = [k for p in self.passes.values() for k in (*p.provides, *p.requires, *p.annotates)]
        built_in: tuple[type[Annotation], ...] = (*BUILT_IN, Tuned)
        yield from dict.fromkeys((*built_in, *kinds))


def standard_registry(plugins: Sequence[Path] = ()) -> Registry:
    """Built-ins, installed entry points, then the given files. Raises ``DuplicateName``."""
    registry = Registry()
    passes, backends = import_module("qdc.passes"), import_module("qdc.backends")
    for kind in (*passes.PASSES, *backends.BACKENDS):
        registry.add(kind)
    registry.presets.update(passes.PRESETS)
    for group in ("qdc.passes", "qdc.backends"):
        for entry in entry_points(group=group):
            try:
                kind = entry.load()
            except Exception as error:
                raise QdcError(
                    f"the installed plugin {entry.value} does not import: {error}",
                    help="uninstall or repair the package that provides it",
                ) from error
            if not _is_usable(kind):
                raise QdcError(
                    f"the installed plugin {entry.value} is no pass or backend with a name",
                    help="repair or uninstall the package that provides it",
                )
            registry.add(kind)
    for path in plugins:
        registry.load_plugin(path)
    registry.codecs()
    return registry


def _find(label: str, name: str, table: Mapping[str, type[C]], known: Iterable[str]) -> type[C]:
    if name not in table:
        raise UnknownName(f"no {label} is called {name!r}", help=nearest(name, known))
    return table[name]


def _refuse_second(new: type, old: type | None, label: str = "") -> None:
    if old is not None and old is not new:
        name = label or getattr(new, "name", new.__name__)
        raise _duplicate(name, _owner(old), _owner(new))


def _duplicate(name: str, *owners: str) -> DuplicateName:
    return DuplicateName(
        f"two owners claim the name {name!r}",
        where=owners,
        help="rename one of them, or leave one out",
    )


def _owner(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _import_file(path: Path) -> tuple[ModuleType, str]:
    """Run a plugin and return it with the digest of what ran; the same text runs only once."""
    how = "give a Python file: --plugin my_pass.py"
    if not path.is_file():
        raise QdcError(f"no such plugin file: {path}", help=how)
    if path.suffix != ".py":
        raise QdcError("the plugin is no Python file", where=[path.name], help=how)
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"qdc_plugin_{path.stem}_{place[:8]}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name], digest
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec"), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise QdcError(
            f"the plugin does not import: {type(error).__name__}: {error}", where=[path.name]
        ) from error
    return module, digest


def _defined_in(module: ModuleType) -> Iterator[type[Configured]]:
    for value in vars(module).values():
        if _is_usable(value) and value.__module__ == module.__name__:
            yield value


def _is_usable(value: object) -> TypeGuard[type[Configured]]:
    if not (isinstance(value, type) and issubclass(value, Pass | Backend)):
        return False
    return isinstance(getattr(value, "name", None), str) and not inspect.isabstract(value)
