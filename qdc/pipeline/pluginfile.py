"""A plugin file: it is run once as a module, and a mistake in it is told by its line."""

import hashlib
import re
import sys
import traceback
from pathlib import Path
from types import ModuleType

from qdc.errors import QdcError, nearest
from qdc.stopping import is_stop

PREFIX = "qdc_plugin_"
"""Of the module name of a file; digests of its place and its text follow."""


def import_file(path: Path) -> tuple[ModuleType, str]:
    """Run a plugin and return it with the digest of what ran; the same text runs only once.

    Raises:
        QdcError: the file is missing, is no Python file, or fails as it runs; names the line.
    """
    how = "give a Python file: --plugin my_pass.py"
    if not path.is_file():
        raise QdcError(f"no such plugin file: {path}", help=how)
    if path.suffix != ".py":
        raise QdcError("the plugin is no Python file", where=[path.name], help=how)
    source = path.read_bytes()
    digest = hashlib.sha256(source).hexdigest()
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    name = f"{PREFIX}{path.stem}_{place[:8]}_{digest[:8]}"
    if name in sys.modules:
        return sys.modules[name], digest
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module
    try:
        exec(compile(source, path, "exec"), vars(module))
    except BaseException as error:
        del sys.modules[name]
        if is_stop(error):
            raise
        raise QdcError(
            f"the plugin does not import: {type(error).__name__}: {error}",
            where=[_line_of(error, path)],
            help=_import_help(error),
        ) from error
    return module, digest


def _line_of(error: BaseException, path: Path) -> str:
    """``my_pass.py, line 12``: the last line of the file that ran, or that does not parse."""
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__)
             if frame.f_code.co_filename == str(path)]  # fmt: skip
    if isinstance(error, SyntaxError) and error.filename == str(path) and error.lineno:
        lines = [error.lineno]
    return f"{path.name}, line {lines[-1]}" if lines else path.name


def _import_help(error: BaseException) -> str:
    """Near names where a module of qdc lacks the one that was asked for."""
    module = sys.modules.get(error.name or "") if isinstance(error, ImportError) else None
    missing = re.match(r"cannot import name '(\w+)'", str(error))
    if module is None or missing is None or not module.__name__.startswith("qdc"):
        return ""
    known = getattr(module, "__all__", None) or [n for n in vars(module) if not n.startswith("_")]
    return f"{nearest(missing[1], known)}; qdc/passkit/__init__.py lists what a pass may import"


def classes_of(module: ModuleType) -> list[type]:
    """The classes that the module itself defines, each once."""
    own = (v for v in vars(module).values() if isinstance(v, type))
    return list(dict.fromkeys(value for value in own if value.__module__ == module.__name__))


def plugin_file(value: type) -> str:
    """Name of the plugin file that a class is from; empty for any other class."""
    module = sys.modules.get(value.__module__)
    if module is None or not value.__module__.startswith(PREFIX):
        return ""
    return Path(str(module.__file__)).name
