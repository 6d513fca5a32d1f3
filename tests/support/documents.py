"""Pages whose commands are executed, one after the other, in one folder."""

import contextlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qdc.cli import run
from tests.serve.conftest import Served, running
from tests.support.commands import ROOT, environment
from tests.support.embedded import LINE, embedded_artifact

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8000"
"""Where ``qdc serve`` listens if nothing else is said."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of each block that can be run."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


class Desk:
    """A folder in which pages are executed; what one has written another finds.

    A line that has run is not run again, on whichever page it stands. Two things are not as
    printed: ``MODEL`` is the embedded model, and ``qdc serve`` finds a free port, which takes the
    place of ``ADDRESS``.
    """

    def __init__(self, folder: Path, artifact: Callable[[], Path]) -> None:
        self.folder = folder
        self.artifact = artifact
        self.seen: set[str] = set()
        self.servers = contextlib.ExitStack()
        self.served: dict[str, Served] = {}
        shutil.copytree(ROOT / "examples", folder / "examples")

    def line(self, text: str) -> None:
        """Run one command."""
        text = text.replace("MODEL", "examples/tiny-llada")
        words = shlex.split(text, comments=True)
        if not words or shlex.join(words) in self.seen:
            return
        self.seen.add(shlex.join(words))
        if words == shlex.split(LINE):
            self._copy_artifact(words[words.index("-o") + 1])
        elif words[:2] == ["qdc", "serve"]:
            served = running(self.folder / words[2], *words[3:])
            self.served[ADDRESS] = self.servers.enter_context(served)
        elif words[0] == "python":
            self._python(*words[1:])
        else:
            assert words[0] == "qdc", text
            assert run(words[1:]) == 0, text

    def block(self, language: str, text: str) -> None:
        """Run the lines of a shell; write a file that begins with its name; execute the rest."""
        if language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                self.line(line)
            return
        name = re.match(r"# (\w+\.py)\n", text)
        if name:
            (self.folder / name.group(1)).write_text(text, encoding="utf-8")
            return
        for printed, served in self.served.items():
            text = text.replace(printed, served.url)
        file = self.folder / "block.py"
        file.write_text(text, encoding="utf-8")
        runpy.run_path(str(file))

    def _copy_artifact(self, name: str) -> None:
        """The same command has been run for all tests of this run."""
        made = self.artifact()
        shutil.copytree(made, self.folder / name)
        report = made.with_name(f"{made.name}-report")
        shutil.copytree(report, self.folder / f"{name}-report")

    def _python(self, *arguments: str) -> None:
        found = subprocess.run(
            [sys.executable, *arguments],
            capture_output=True, text=True, check=False, cwd=self.folder, env=environment(),
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        assert found.stdout


def desk(factory: pytest.TempPathFactory) -> Desk:
    """An empty desk, over the artifact that all tests of the run share."""
    return Desk(factory.mktemp("desk"), lambda: embedded_artifact(factory))
