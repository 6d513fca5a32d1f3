"""Mistakes in the definition of a class: found as the plugin is loaded, each in words."""

from pathlib import Path

import pytest

from qdc.errors import QdcError
from qdc.pipeline.registry import standard_registry

HEAD = """
from typing import ClassVar
from qdc.passkit import Annotation, Kinds, Orders, Pass, Unit
from qdc.runtime.decoding.llada import LladaSampler
from qdc.pipeline.strategybase import Stepwise
from qdc.pipeline.backendbase import Backend
"""
RUN = "    def run(self, unit): pass\n"
NAMED = "class Mine(Pass):\n    name = 'mine'\n"
NOTE = "class Note(Annotation):\n"
CASES = {
    "no name": ("class Mine(Pass):\n" + RUN, "it has no name"),
    "name as a field": (f"class Mine(Pass):\n    name: str = 'mine'\n{RUN}", "as an option"),
    "no run": (NAMED, "it does not define run"),
    "run without unit": (f"{NAMED}    def run(self): pass\n", "run takes (self), and is called"),
    "run of two": (f"{NAMED}    def run(self, a, b): pass\n", "run takes (self, a, b)"),
    "run no method": (f"{NAMED}    run: ClassVar[int] = 3\n", "run is to be a method"),
    "check of none": (f"{NAMED}    def check(self): pass\n{RUN}", "is called with (self, graph)"),
    "no tuple": (f"{NAMED}    provides = Orders\n{RUN}", "provides is no tuple"),
    "names of kinds": (f"{NAMED}    requires = ('orders',)\n{RUN}", "requires names 'orders'"),
    "kinds as a field": (f"{NAMED}    requires: int = 3\n{RUN}", "requires: ClassVar[Kinds]"),
    "no tag": (
        f"{NOTE}    def text(self): return ''\n{NAMED}    provides = (Note,)\n{RUN}",
        "the annotation Note has no tag",
    ),
    "no text": (
        f"{NOTE}    tag = 'note'\n{NAMED}    provides = (Note,)\n{RUN}",
        "the annotation Note does not define text",
    ),
    "half a strategy": (
        "class Mine(Stepwise):\n    name = 'mine'\n    def plan(self, counts, steps): pass\n",
        "the strategy cannot be used: it does not define choose, propose",
    ),
    "strategy of another form": (
        "class Mine(LladaSampler):\n    name = 'mine'\n    def choose(self, confidence): pass\n",
        "is called with (self, confidence, open_places, amount)",
    ),
    "half a backend": (
        "class Mine(Backend):\n    name = 'mine'\n",
        "the backend cannot be used: it does not define emit_region, finish",
    ),
}


# Pydantic warns of the very fault that is refused here.
@pytest.mark.filterwarnings("ignore:Field name:UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_a_class_that_is_not_whole_is_refused(case: str, tmp_path: Path) -> None:
    text, what = CASES[case]
    path = tmp_path / "mine.py"
    path.write_text(HEAD + text, encoding="utf-8")
    with pytest.raises(QdcError) as caught:
        standard_registry([path])
    assert what in caught.value.what
    assert caught.value.where == ("mine.py: class Mine",)
    assert "docs/writing_" in caught.value.help


def test_all_faults_are_told_together(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + "class Mine(Pass):\n    provides = Orders\n", encoding="utf-8")
    with pytest.raises(QdcError, match=r"no name: .*define run; provides is no tuple"):
        standard_registry([path])


def test_a_base_for_others_needs_no_name(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        f"{HEAD}class Base(Pass):\n{RUN}class Mine(Base):\n    name = 'mine'\n", encoding="utf-8"
    )
    assert standard_registry([path]).origin(standard_registry([path]).passes["mine"]) == "mine.py"


def test_more_parameters_with_defaults_may_be_there(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(f"{HEAD}{NAMED}    def run(self, unit, deep=False): pass\n", encoding="utf-8")
    assert "mine" in standard_registry([path]).passes


@pytest.mark.parametrize(
    ("text", "line", "help_"),
    [
        ("\nfrom qdc.passkit import Kep\n", 2, "did you mean Kept"),
        ("\n\nclass A(:\n", 3, ""),
        ("x = 1\ny = x / 0\n", 2, ""),
    ],
)
def test_a_file_that_does_not_import_is_told_by_its_line(
    text: str, line: int, help_: str, tmp_path: Path
) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(QdcError) as caught:
        standard_registry([path])
    assert caught.value.where == (f"mine.py, line {line}",)
    assert help_ in caught.value.help
