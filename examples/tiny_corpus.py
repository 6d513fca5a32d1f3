"""The text of the embedded model: Python's own standard library, which every machine has.

Only folders that every distribution ships are taken (Debian leaves out ``test`` and ``idlelib``),
in a fixed order; one file in twenty, chosen by a hash of its path, is held out.
"""

import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path

LEFT_OUT = {
    "site-packages", "dist-packages", "__pycache__", "test", "tests", "idlelib", "tkinter",
    "turtledemo", "lib2to3", "distutils", "ensurepip", "encodings", "lib-dynload",
}  # fmt: skip
HELD_OUT_ONE_IN = 20


def files() -> Iterator[tuple[str, Path]]:
    """Yield ``(relative path, file)`` in sorted order."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if LEFT_OUT.isdisjoint(relative.parts) and not relative.name.startswith("_sysconfigdata"):
            yield relative.as_posix(), path


def is_held_out(name: str) -> bool:
    """Whether this file is kept for evaluation; depends on its path alone."""
    digest = hashlib.sha256(name.encode()).digest()
    return int.from_bytes(digest[:4], "big") % HELD_OUT_ONE_IN == 0


def split() -> tuple[dict[str, str], dict[str, str]]:
    """Return the training and the held-out files, name to text."""
    train: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for name, path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        if len(text) >= 512:
            (held_out if is_held_out(name) else train)[name] = text
    return train, held_out
