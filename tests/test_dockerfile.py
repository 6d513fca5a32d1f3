"""The Dockerfile is well formed, names what there is, and what it installs runs.

No daemon builds it here. Its ``RUN`` lines of pip are read from it and run in a bare environment.
"""

import os
import re
import shlex
import shutil
import subprocess
import venv
from pathlib import Path

import pytest
from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).parent.parent
KNOWN = {"FROM", "ARG", "RUN", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "ENTRYPOINT", "CMD"}
LITTER = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def steps() -> list[tuple[str, str]]:
    """Instructions and what stands behind them, in order, comments left out."""
    read = DockerfileParser(path=str(ROOT / "Dockerfile")).structure
    return [(s["instruction"], s["value"]) for s in read if s["instruction"] != "COMMENT"]


def values(steps: list[tuple[str, str]], instruction: str) -> list[str]:
    return [value for name, value in steps if name == instruction]


def arguments(steps: list[tuple[str, str]]) -> dict[str, str]:
    """What ``ARG`` lines give."""
    pairs = (value.partition("=") for value in values(steps, "ARG"))
    return {name: default for name, _, default in pairs}


def test_instructions_are_known_and_in_order(steps: list[tuple[str, str]]) -> None:
    names = [name for name, _ in steps]
    assert set(names) <= KNOWN
    assert names[0] == "FROM"
    assert names.count("FROM") == names.count("ENTRYPOINT") == names.count("CMD") == 1
    given = {*arguments(steps), *(v.partition("=")[0] for v in values(steps, "ENV"))}
    used = {found for line in values(steps, "RUN") for found in re.findall(r"\$\{?(\w+)", line)}
    assert used <= given
    for line in values(steps, "RUN"):
        found = subprocess.run(["sh", "-n", "-c", line], capture_output=True, check=False)
        assert found.returncode == 0, line


def test_it_starts_the_command_as_an_ordinary_user(steps: list[tuple[str, str]]) -> None:
    assert values(steps, "ENTRYPOINT") == ['["qdc"]']
    assert values(steps, "USER") == ["qdc"]
    user = next(number for number, step in enumerate(steps) if step == ("USER", "qdc"))
    assert any(line.endswith(" qdc") and "useradd" in line for line in values(steps[:user], "RUN"))


def test_torch_is_the_tested_one_and_first(steps: list[tuple[str, str]]) -> None:
    tested = re.search(r"^TORCH_VERSION \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert tested is not None
    assert arguments(steps)["TORCH_VERSION"] == tested.group(1)
    installs = [line for line in values(steps, "RUN") if line.startswith("pip install")]
    assert '"torch==$TORCH_VERSION"' in installs[0]
    assert installs[1].endswith('"/src[serve,cpu]"')
    assert len(installs) == 2


def test_what_it_copies_is_there_and_not_ignored(steps: list[tuple[str, str]]) -> None:
    """The list of what is not ignored holds all of it and no more."""
    copied = {source for value in values(steps, "COPY") for source in value.split()[:-1]}
    assert all((ROOT / source).exists() for source in copied)
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert next(line for line in lines if line and line[0] not in "#!") == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == copied


@pytest.mark.slow
def test_what_it_installs_runs(steps: list[tuple[str, str]], tmp_path: Path) -> None:
    """Step by step, with ``/`` and the working folder moved here and pip's index as it is set."""
    venv.create(tmp_path / "venv", with_pip=True)
    search = os.pathsep.join((str(tmp_path / "venv" / "bin"), os.environ["PATH"]))
    given = {**arguments(steps), "TORCH_INDEX": "https://pypi.org/simple"}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**kept, **given, "PATH": search, "OMP_NUM_THREADS": "1"}
    here, inside = tmp_path, tmp_path / "home"
    for name, value in steps:
        if name == "COPY":
            *sources, target = value.split()
            place = here / target[1:] if target.startswith("/") else inside / target
            for source in (ROOT / each for each in sources):
                if source.is_dir():
                    shutil.copytree(source, place, symlinks=True, ignore=LITTER)
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source, place)
        elif name == "RUN" and value.startswith("pip "):
            line = value.replace('"/src', f'"{here}/src')
            subprocess.run(["sh", "-c", line], check=True, env=environment, timeout=3600)
    inside.mkdir(exist_ok=True)
    for words in ("--help", "plan examples/tiny-llada", "serve --help"):
        found = subprocess.run(
            [tmp_path / "venv" / "bin" / "qdc", *shlex.split(words)],
            capture_output=True, text=True, check=False, cwd=inside, env=environment, timeout=600,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
