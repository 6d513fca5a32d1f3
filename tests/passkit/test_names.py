"""``qdc.passkit`` is enough: whoever writes a pass imports from nowhere else."""

import ast
import re
from pathlib import Path

import pytest

import qdc
from qdc import passkit

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
EXAMPLES = ("protect_allocate.py", "ternary_lower.py")


def imported(source: str) -> set[str]:
    """Modules of qdc that a text imports from."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.split(".")[0] == "qdc"}


def test_every_name_is_there_once() -> None:
    assert len(set(passkit.__all__)) == len(passkit.__all__)
    assert all(hasattr(passkit, name) for name in passkit.__all__)


@pytest.mark.parametrize("name", ["Annotation", "Codec", "Lowered", "Pass", "QdcError", "Unit"])
def test_names_of_the_package_are_the_same_here(name: str) -> None:
    assert getattr(passkit, name) is getattr(qdc, name)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_import_from_nowhere_else(name: str) -> None:
    source = (ROOT / "examples" / "plugins" / name).read_text(encoding="utf-8")
    assert imported(source) == {"qdc.passkit"}


@pytest.mark.parametrize("page", ["writing_passes.md", "writing_quantizers.md"])
def test_pages_import_from_nowhere_else(page: str) -> None:
    blocks = BLOCK.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert blocks
    assert set().union(*map(imported, blocks)) <= {"qdc", "qdc.passkit"}
