"""English text that every CPython has: the language's reference, and docstrings of its library.

Nothing is imported or run: sources are parsed. A paragraph that stands in several documents counts
in the first alone, and all of one module falls to one side, so that what is judged on was not
calibrated on.
"""

import ast
import hashlib
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path

SIDES = "calibration", "heldout"
SHORTEST = 600
"""Letters of the shortest document."""
LEFT_OUT = {"test", "idlelib", "lib2to3", "site-packages", "__pycache__"}
"""Folders of the library without text of their own."""


def documents(library: Path | None = None) -> Iterator[tuple[str, str]]:
    """Module, and a document of it, in a fixed order; ``library`` is this Python's own."""
    root = library or Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        module = path.relative_to(root).as_posix()
        if LEFT_OUT & set(Path(module).parts):
            continue
        tree = _parsed(path)
        if tree is None:
            continue
        if module == "pydoc_data/topics.py":
            yield from ((f"{module}:{name}", text) for name, text in _topics(tree))
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield module, ast.get_docstring(node) or ""


def split(found: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    """Documents of either side, without the paragraphs that stood before."""
    sides: dict[str, list[str]] = {side: [] for side in SIDES}
    seen: set[str] = set()
    for module, text in found:
        paragraphs = [part.strip("\n") for part in text.split("\n\n") if part.strip()]
        fresh = [part for part in dict.fromkeys(paragraphs) if " ".join(part.split()) not in seen]
        seen.update(" ".join(part.split()) for part in fresh)
        document = "\n\n".join(fresh)
        if len(document) >= SHORTEST:
            draw = hashlib.sha256(module.encode()).digest()[0]
            sides[SIDES[draw % 2]].append(document)
    return sides


def write_texts(folder: Path) -> dict[str, tuple[int, str]]:
    """Write ``calibration.jsonl`` and ``heldout.jsonl``; documents and digest of each."""
    written = {}
    for side, texts in split(documents()).items():
        lines = "".join(f"{json.dumps({'text': text})}\n" for text in texts).encode()
        (folder / f"{side}.jsonl").write_bytes(lines)
        written[side] = len(texts), hashlib.sha256(lines).hexdigest()
    return written


def _parsed(path: Path) -> ast.Module | None:
    """Some files of the library are wrong on purpose, as data of its tests."""
    try:
        return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return None


def _topics(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            found: dict[str, str] = ast.literal_eval(node.value)
            yield from found.items()
