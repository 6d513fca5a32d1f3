"""Every pass that comes with qdc: a text before, and the text that it makes of it."""

from pathlib import Path

import pytest

from qdc.passes import PASSES
from tests.conftest import TESTS, Golden
from tests.support.text_pairs import HEADER, rewritten

PAIRS = TESTS / "golden" / "opt"
BEFORE, AFTER = ".in.txt", ".out.txt"
NAMES = sorted(path.name.removesuffix(BEFORE) for path in PAIRS.glob(f"*{BEFORE}"))


@pytest.mark.parametrize("name", NAMES)
def test_text_after_the_pass(name: str, golden: Golden, tmp_path: Path) -> None:
    before = (PAIRS / f"{name}{BEFORE}").read_text(encoding="utf-8")
    golden.of(PAIRS / f"{name}{AFTER}")(rewritten(before, tmp_path))


def test_every_pass_has_a_pair_of_texts() -> None:
    assert {kind.name for kind in PASSES} == set(NAMES)
    assert {path.name for path in PAIRS.iterdir()} == {
        f"{name}{end}" for name in NAMES for end in (BEFORE, AFTER)
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_text_before_runs_the_pass_that_it_is_named_after(name: str) -> None:
    header = HEADER.match((PAIRS / f"{name}{BEFORE}").read_text(encoding="utf-8"))
    assert header is not None
    assert header["passes"].removeprefix("stages(").startswith(name)
