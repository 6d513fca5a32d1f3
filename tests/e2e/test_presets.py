"""The pipelines that have a name: their text is what runs, and they compile a tiny model."""

import re
from pathlib import Path

import pytest
import torch

import qdc
from qdc.cli import run
from qdc.passes.daq_lower import DaqLower
from qdc.pipeline.builder import build_plan
from qdc.pipeline.plan import Group
from qdc.pipeline.registry import standard_registry
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny

PRESETS = standard_registry().presets
METHOD = ("default", "best", "best-signs", "release", "paper")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("presets") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=160)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_text_is_a_fixed_point(name: str) -> None:
    registry = standard_registry()
    plan = build_plan(name, registry)
    assert str(plan) == PRESETS[name].text
    assert build_plan(str(plan), registry) == plan


def test_w2a8_has_the_weights_of_default() -> None:
    """But for what it does with activations it is the same pipeline."""
    text = re.sub(r"quantize-activations\{[^}]*\},", "", PRESETS["w2a8"].text)
    assert text == PRESETS["default"].text


@pytest.mark.parametrize("seed", [0, 1])
def test_each_takes_the_seed_of_the_command_line(seed: int) -> None:
    """A comparison gives one to every method that draws: no pass may mind that it has no use."""
    registry = standard_registry()
    for name, preset in registry.presets.items():
        plan = build_plan(name, registry)
        if any("seed" in type(step).model_fields for step in plan.passes()):
            build_plan(preset.text, registry, {"seed": seed})


def test_they_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["passes"]) == 0
    text = re.sub(r"\s+", "", capsys.readouterr().out)
    for name, preset in PRESETS.items():
        assert name in text
        assert re.sub(r"\s+", "", preset.text) in text, name


@pytest.mark.parametrize("name", METHOD)
def test_the_method_compiles_a_tiny_model(name: str, model: Path, tmp_path: Path) -> None:
    passes = PRESETS[name].text.replace(",polish,", ",polish{iterations=2},")
    report = compile_tiny(model, tmp_path / "out", passes)
    steps = re.sub(r"\{[^}]*\}", "", passes)
    assert re.sub(r"\{[^}]*\}", "", report.pipeline) == steps
    codec = "trellis" if name == "best" else "multi-binary"
    layers = [layer for layer in report.layers if layer.codec == codec]
    assert len(layers) == 14
    assert all(layer.error is not None and layer.error < 1 for layer in layers)
    assert 1.99 < report.sign_bits <= 2
    assert (report.sign_bits == 2) or name == "best"
    assert any(remark.split()[1] == "polish" for remark in report.remarks) == ("polish" in passes)
    logits = qdc.load(tmp_path / "out", backend="reference")(torch.tensor([[5, 6, 7, 1]]))
    assert logits.isfinite().all()


def lowering(name: str) -> DaqLower:
    (step,) = (s for s in build_plan(name, standard_registry()).passes() if s.name == "daq-lower")
    assert isinstance(step, DaqLower)
    return step


def test_release_and_paper_are_as_the_specification_says() -> None:
    release, paper = lowering("release"), lowering("paper")
    assert (release.sigma, paper.sigma) == (2, 3)
    assert (release.two_sided, paper.two_sided) == (False, True)
    assert (release.outlier_weight, paper.outlier_weight) == (3, 4)
    assert (release.importance, paper.importance) == ("conditional", "marginal")
    assert (release.outliers_of, paper.outliers_of) == ("current", "original")
    assert (release.fit, paper.fit) == ("joint", "greedy")
    assert (release.compensation, paper.compensation) == ("diag", "none")
    assert (release.sweeps, release.tolerance) == (15, 0)
    for step in (release, paper):
        assert not step.feedback
        assert step.scale_bits == 16
    (group,) = (
        item for item in build_plan("release", standard_registry()).items if isinstance(item, Group)
    )
    assert group.order.order == "outputs-first"
