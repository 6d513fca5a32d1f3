"""Whose code an error comes from: a plugin's, by its file or its entry point, or our own."""

import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from qdc.pipeline.pluginfile import PREFIX


def plugin_of(error: BaseException) -> str:
    """``the plugin my_pass.py, line 12``: the last place in a plugin that the error came through.

    Empty if it came through none. What an error was made from counts, too.
    """
    found = ""
    installed = _installed()
    for frame, line in _frames(error):
        module = str(frame.f_globals.get("__name__"))
        if module.startswith(PREFIX):
            found = f"the plugin {Path(frame.f_code.co_filename).name}, line {line}"
        for place, name in installed.items():
            if module == place or module.startswith(f"{place}."):
                found = f"the installed plugin {name}, line {line} of {module}"
    return found


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    if error.__cause__ is not None:
        yield from _frames(error.__cause__)
    yield from traceback.walk_tb(error.__traceback__)


def _installed() -> dict[str, str]:
    """Modules that hold plugins of other packages, and the entry points that name them."""
    registry = sys.modules.get("qdc.pipeline.registry")
    if registry is None:  # nobody has asked for a plugin
        return {}
    return {
        entry.module.partition(".")[0]: entry.value
        for kind in registry.KINDS
        for entry in registry.entry_points(group=kind.group)
    }
