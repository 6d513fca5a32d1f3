"""The rooms of the house know each other in one direction alone: computed from the sources."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import networkx
import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("backends", "passes")
GROUND = {
    "jsontext",
    "modelfiles",
    "__init__",
    "__main__",
    "api",
    "disk",
    "errors",
    "options",
    "stopping",
    "units",
    "version",
}
"""The files that stand beside the rooms."""
NAMES = 53
"""Columns of the drawing on the page, behind which the rooms are explained."""
Import = tuple[str, str, bool]
"""Who imports, what is imported, and whether for type checkers alone."""


def modules() -> dict[str, Path]:
    """Every module by its dotted name, the linked folders under the names of their packages."""
    tops = [(ROOT / "qdc", "qdc"), *((ROOT / name, f"qdc.{name}") for name in LINKED)]
    found = {}
    for top, prefix in tops:
        for path in top.rglob("*.py"):
            inside = path.relative_to(top).with_suffix("").parts
            if top.name == "qdc" and inside[0] in LINKED:
                continue
            found[".".join((prefix, *inside)).removesuffix(".__init__")] = path
    return found


def contract() -> dict[str, Any]:
    """The one contract of import-linter."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    [found] = project["tool"]["importlinter"]["contracts"]
    return dict(found)


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """Yield what one module imports of qdc, inside functions too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    def visit(node: ast.AST, typing: bool) -> Iterator[Import]:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing = True
        if isinstance(node, ast.Import):
            yield from ((name, alias.name, typing) for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join((*parts, *([node.module] if node.module else [])))
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield name, inner if inner in known else base, typing
        for child in ast.iter_child_nodes(node):
            yield from visit(child, typing)

    yield from visit(ast.parse(path.read_text(encoding="utf-8")), False)


@pytest.fixture(scope="module")
def rooms() -> "networkx.DiGraph[str]":
    """Rooms, and an edge for each import of one from another; ``run`` where it happens at run time.

    The package itself hands out names of many rooms when they are asked for, and stands for none.
    """
    graph: networkx.DiGraph[str] = networkx.DiGraph()
    known = modules()
    for name, path in known.items():
        for importer, imported, typing in imports(name, path, known):
            if not imported.startswith("qdc.") or importer == "qdc":
                continue
            first, second = importer.split(".")[1], imported.split(".")[1]
            if first != second:
                run = graph.edges.get((first, second), {}).get("run", False) or not typing
                graph.add_edge(first, second, run=run)
    return graph


def test_no_cycle_between_rooms(rooms: "networkx.DiGraph[str]") -> None:
    run = networkx.DiGraph(e for e in rooms.edges if rooms.edges[e]["run"])
    cycles = [sorted(group) for group in networkx.strongly_connected_components(run)]
    assert [group for group in cycles if len(group) > 1] == []
    assert {"cli", "compiling", "streaming", "numerics"} <= set(run)


def test_types_close_no_cycle_but_the_listed_one(rooms: "networkx.DiGraph[str]") -> None:
    cycles = [sorted(group) for group in networkx.strongly_connected_components(rooms)]
    assert [group for group in cycles if len(group) > 1] == [["pipeline", "streaming"]]


def test_passes_and_backends_are_reached_by_name_alone(rooms: "networkx.DiGraph[str]") -> None:
    assert [list(rooms.predecessors(name)) for name in LINKED] == [[], []]


def test_only_the_ground_stands_outside_of_rooms() -> None:
    assert {path.stem for path in (ROOT / "qdc").glob("*.py")} == GROUND


def test_page_draws_the_storeys_of_the_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    drawn = [line[:NAMES].split() for line in page.split("```")[1].splitlines()]
    assert [names for names in drawn if names] == [row.split(" | ") for row in contract()["layers"]]


def test_contract_is_exhaustive_and_ignores_types_alone() -> None:
    rules = contract()
    assert rules["type"] == "layers"
    assert rules["exhaustive"]
    assert rules["containers"] == ["qdc"]
    known = modules()
    for line in rules["ignore_imports"]:
        importer, imported = line.split(" -> ")
        found = [t for _, what, t in imports(importer, known[importer], known) if what == imported]
        assert found, line
        assert all(found), f"{line} happens at run time"
