"""The lists in pyproject.toml agree with the files, and the links are in place."""

import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
LINKED = ("backends", "passes")


@pytest.fixture(scope="module")
def tools() -> dict[str, Any]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    tables: dict[str, Any] = project["tool"]
    return tables


def package_folders(top: Path) -> Iterator[Path]:
    """Yield every folder from ``top`` down that Python takes for a package, past no link."""
    for folder, _, files in os.walk(top):
        if "__init__.py" in files:
            yield Path(folder)


@pytest.mark.parametrize("name", LINKED)
def test_link_leads_to_the_folder_at_the_top(name: str) -> None:
    cure = f"restore the link: ln -sfn ../{name} qdc/{name}"
    assert (ROOT / "qdc" / name).resolve() == (ROOT / name).resolve(), cure


def test_package_list_is_what_lies_on_disk(tools: dict[str, Any]) -> None:
    inside_qdc = [folder.relative_to(ROOT) for folder in package_folders(ROOT / "qdc")]
    for name in LINKED:
        inside_qdc += ["qdc" / folder.relative_to(ROOT) for folder in package_folders(ROOT / name)]
    on_disk = sorted(".".join(folder.parts) for folder in inside_qdc)
    assert sorted(tools["setuptools"]["packages"]) == on_disk


def test_linked_folders_are_mapped_for_setuptools(tools: dict[str, Any]) -> None:
    assert tools["setuptools"]["package-dir"] == {f"qdc.{name}": name for name in LINKED}


def test_package_ships_its_type_marker(tools: dict[str, Any]) -> None:
    assert (ROOT / "qdc" / "py.typed").exists()
    assert "py.typed" in tools["setuptools"]["package-data"]["qdc"]


@pytest.mark.parametrize("name", [".ci/run", "README.md"])
def test_ci_runs_the_command_that_the_readme_gives(name: str) -> None:
    assert "make test" in (ROOT / name).read_text(encoding="utf-8")


def test_ci_script_is_executable() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
