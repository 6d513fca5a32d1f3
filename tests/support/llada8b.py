"""``examples/llada8b_headers.py`` as a module: LLaDA-8B's configuration, shapes and index."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FOUND = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "llada8b_headers.py"))

CONFIG: dict[str, Any] = _FOUND["CONFIG"]
shapes: Callable[[], dict[str, tuple[int, ...]]] = _FOUND["shapes"]
write: Callable[[Path], None] = _FOUND["write"]
