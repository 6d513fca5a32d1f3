"""Models whose attention goes by blocks are calibrated block by block, unless told otherwise."""

from pathlib import Path

import pytest

import qdc
from qdc.cli import run
from qdc.pipeline.registry import standard_registry
from qdc.planning.configure import configure
from qdc.planning.options import PlanOptions
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, EMBEDDED, write_family

PASSES = "stages(calibrate-mcs,rtn-lower),pack"


@pytest.fixture(scope="module")
def sdar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("blocks") / "sdar", CASES["sdar"])


@pytest.mark.parametrize(
    ("passes", "geometry", "expected"),
    [
        (PASSES, None, "geometry=block-diffusion"),
        (PASSES, "mcs", "geometry=mcs"),
    ],
)
def test_what_is_not_given_goes_by_blocks(
    sdar: Path, tmp_path: Path, passes: str, geometry: str | None, expected: str
) -> None:
    report = compile_tiny(sdar, tmp_path / "out", passes, geometry=geometry)
    assert expected in report.pipeline
    assert report.pipeline.count("geometry") == 1
    again = qdc.compile(sdar, report.pipeline, out=tmp_path / "again", write_report=False)
    assert again.artifact_sha256 == report.artifact_sha256


def test_other_models_are_calibrated_as_before() -> None:
    options = PlanOptions(model_dir=EMBEDDED, passes=PASSES)
    plan, _ = configure(options, standard_registry())
    assert "geometry" not in str(plan)


def test_eval_says_that_it_reads_block_by_block(
    sdar: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--text", EMBEDDED / "heldout.jsonl", "--windows", 2, "--length", 24]
    given += ["--ratios", 0.5, "--seeds", 1]
    assert run(["eval", str(sdar), *map(str, given)]) == 0
    own = capsys.readouterr().out
    assert "each of 4 tokens is read behind the clean text before it" in own
    assert run(["eval", str(sdar), *map(str, given), "--hide", "all"]) == 0
    everywhere = capsys.readouterr().out
    assert "behind the clean text" not in everywhere
    assert own.split("bound")[0] != everywhere.split("bound")[0]
    assert run(["eval", str(EMBEDDED), *map(str, given), "--hide", "all"]) == 1
    assert "--hide is about attention blocks" in capsys.readouterr().err
