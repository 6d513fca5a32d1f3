"""A wheel that is built from this tree works where nothing else of the tree is."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from qdc.version import DISTRIBUTION, install
from tests.support.checkpoints import write_checkpoint

ROOT = Path(__file__).parent.parent
SOURCES = ("qdc", "passes", "backends")
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
UNSEEN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "COLUMNS", "FORCE_COLOR")
TAKEN = re.compile(r"pip install[^\n]*['\" ]qdc(?![\w-])|(?<![\w-])qdc\[(?:triton|serve|eval|data)")
"""An install line of the name that is somebody else's on the package index."""


def call(arguments: Sequence[object], folder: Path) -> str:
    """Run a command in a folder as a user's shell would, and return what it prints."""
    inherited = {name: value for name, value in os.environ.items() if name not in UNSEEN}
    found = subprocess.run(
        [str(each) for each in arguments],
        capture_output=True, text=True, check=False, cwd=folder, timeout=300,
        env={**inherited, "OMP_NUM_THREADS": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built from a copy: building leaves folders behind."""
    tree = tmp_path_factory.mktemp("tree")
    litter = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=litter)
    for name in ("pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copyfile(ROOT / name, tree / name)
    out = tree / "dist"
    out.mkdir()
    name = call([sys.executable, "-c", BUILD, out], tree).split()[-1]
    return out / name


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` folder of an environment that has the wheel, and its dependencies from here.

    A line of a ``.pth`` file adds a folder to the import path and reads none of the ``.pth`` files
    in there, so the editable install of this tree stays out of reach.
    """
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    inside = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
    here = sysconfig.get_paths()["purelib"]
    (folder / inside / "dependencies.pth").write_text(here + "\n", encoding="utf-8")
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index"]
    call([*pip, "--quiet", "--no-deps", "--no-compile", wheel], folder)
    return python.parent


def test_wheel_has_every_file_of_the_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        packed = set(file.namelist())
    places = {"qdc": "qdc", "passes": "qdc/passes", "backends": "qdc/backends"}
    wanted = {
        f"{inside}/{path.relative_to(ROOT / name).as_posix()}"
        for name, inside in places.items()
        for path in (ROOT / name).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wanted if name.endswith(".j2")}
    assert "qdc/data/calibration.jsonl" in wanted
    assert not wanted - packed


@pytest.mark.slow
def test_commands_run_from_the_wheel(bare: Path, tmp_path: Path) -> None:
    """With the embedded text and the templates of the report, which travel as package data."""
    model = write_checkpoint(tmp_path / "model", d_model=64, mlp_hidden_size=64, n_layers=1)
    where = call([bare / "python", "-c", "import qdc; print(qdc.__file__)"], tmp_path)
    assert Path(where.strip()).is_relative_to(bare.parent)
    assert "qdc compile MODEL -o OUT" in call([bare / "qdc", "--help"], tmp_path)
    assert "daq-lower" in call([bare / "qdc", "plan", model], tmp_path)
    call([bare / "qdc", "compile", model, "-o", "out", "--samples", 2], tmp_path)
    assert (tmp_path / "out" / "model.safetensors.index.json").is_file()
    assert "<svg" in (tmp_path / "out-report" / "report.html").read_text(encoding="utf-8")


def test_install_line_finds_what_is_installed(bare: Path, tmp_path: Path) -> None:
    """From the wheel alone: nothing is looked up, so nobody else's package can come."""
    line = [f"{DISTRIBUTION}[serve,data]", "--no-index", "--dry-run"]
    said = call([sys.executable, "-m", "pip", "--python", bare / "python", "install", *line], bare)
    assert f"Requirement already satisfied: {DISTRIBUTION}[data,serve]" in said
    assert "Would install" not in said


def test_install_line_names_the_pip_of_this_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pip").write_text("#!/bin/sh\n")
    (tmp_path / "pip").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install("serve") == f"{sys.executable} -m pip install '{DISTRIBUTION}[serve]'"
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert install("serve") == f"pip install '{DISTRIBUTION}[serve]'"


def test_no_install_line_has_the_name_of_another_package() -> None:
    suffixes = {".py", ".md", ".toml", ".html", ".j2", ".txt", ""}
    files = [ROOT / "README.md", ROOT / "Makefile", ROOT / "pyproject.toml"]
    for name in (*SOURCES, "bench", "docs", "examples"):
        files += [p for p in (ROOT / name).rglob("*") if p.is_file() and p.suffix in suffixes]
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        for match in TAKEN.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
