"""What ``--effort`` chooses, and what wins over it."""

from pathlib import Path
from typing import Any

import pytest

import qdc
from qdc.errors import InvalidPipeline, QdcError
from qdc.pipeline.registry import standard_registry
from qdc.planning.configure import configure
from qdc.planning.effort import said
from qdc.planning.options import PlanOptions
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import LENGTH

REGISTRY = standard_registry()
TWO = "calibrate-mcs{samples=3},sensitivity,stages(calibrate-mcs,rtn-lower),pack"


def planned(longest: int | None = None, **given: Any) -> tuple[str, str]:
    """The pipeline, and what is said of the effort."""
    options = PlanOptions.parse(model_dir="m", **given)
    plan, _ = configure(options, REGISTRY, longest=longest)
    return str(plan), said(options.effort, plan, options.settled)


def written(passes: str, **given: Any) -> str:
    return planned(passes=passes, **given)[0]


def test_normal_is_what_passes_do_by_themselves() -> None:
    assert planned() == (
        written("default"),
        "normal: pipeline default, 128 samples, each as long as the model takes",
    )
    assert planned(effort="normal") == planned()


def test_low_takes_few_and_short_samples() -> None:
    pipeline, words = planned(effort="low")
    assert pipeline == written("default", samples=16, length=512)
    assert words == "low: pipeline default, 16 samples, each of 512 tokens"


@pytest.mark.parametrize("longest", [256, 512])
def test_low_is_no_longer_than_the_model(longest: int) -> None:
    pipeline, words = planned(longest, effort="low")
    assert pipeline == written("default", samples=16)
    assert words.endswith("16 samples, each as long as the model takes")


def test_high_takes_another_pipeline() -> None:
    pipeline, words = planned(effort="high")
    assert pipeline == written("best", samples=256)
    assert words.startswith("high: pipeline best, 256 samples")


@pytest.mark.parametrize(
    ("given", "pipeline", "words"),
    [
        ({"samples": 4}, written("default", samples=4, length=512),
         "low: pipeline default, each of 512 tokens; --samples as given"),
        ({"length": 32}, written("default", samples=16, length=32),
         "low: pipeline default, 16 samples; --length as given"),
        ({"passes": "rtn"}, written("rtn", samples=16, length=512),
         "low: 16 samples, each of 512 tokens; --passes as given"),
        ({"passes": "default"}, written("default", samples=16, length=512),
         "low: 16 samples, each of 512 tokens; --passes as given"),
        ({"passes": TWO}, TWO.replace("samples=3", "samples=3 length=512").replace(
            "(calibrate-mcs", "(calibrate-mcs{samples=16 length=512}"),
         "low: 3 or 16 samples, each of 512 tokens; --passes as given"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_given_wins(given: dict[str, Any], pipeline: str, words: str) -> None:
    assert planned(effort="low", **given) == (pipeline, words)


def test_an_effort_that_changes_nothing_is_refused() -> None:
    with pytest.raises(InvalidPipeline, match="--effort high changes nothing"):
        planned(effort="high", passes="data-free")
    with pytest.raises(InvalidPipeline, match="--effort low changes nothing"):
        planned(effort="low", samples=4, length=32)
    assert planned(effort="normal", passes="data-free")[1] == (
        "normal: no pass calibrates; --passes as given"
    )
    calibrated = planned(passes="stages(calibrate-mcs),rtn", samples=4, length=32)[1]
    assert calibrated == "normal: chooses nothing; --passes and --samples and --length as given"
    with pytest.raises(QdcError, match="--effort higth is no effort") as caught:
        planned(effort="higth")
    assert "did you mean high?" in str(caught.value)


def test_a_compile_does_it_and_says_it(tmp_path: Path) -> None:
    model = write_checkpoint(tmp_path / "m", max_length=LENGTH)
    report = qdc.compile(model, "rtn", out=tmp_path / "o", effort="low", write_report=False)
    assert report.pipeline == written("rtn", samples=16)
    assert report.effort == "low: 16 samples, each as long as the model takes; --passes as given"
