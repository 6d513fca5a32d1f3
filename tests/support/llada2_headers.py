"""``examples/llada2_headers.py`` as a module: LLaDA2.0's configurations, shapes and index."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

_FOUND = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "llada2_headers.py"))

SHARED: dict[str, Any] = _FOUND["SHARED"]
SIZES: dict[str, dict[str, int]] = _FOUND["SIZES"]
shapes: Callable[[dict[str, Any]], dict[str, tuple[int, ...]]] = _FOUND["shapes"]
write: Callable[[str, Path], None] = _FOUND["write"]
