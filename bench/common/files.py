"""Results on disk, whole whenever they are there: what is there need not be computed again."""

import os
from pathlib import Path


def write(text: str, path: Path) -> None:
    """Write a file and its folder; a reader sees the old text or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside it and under this process's own name, for others may write the same.
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
