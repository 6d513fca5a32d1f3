"""Whole compiles with measured allocation: budgets hold in the files that are written."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from qdc.errors import InvalidPipeline
from qdc.pipeline.registry import standard_registry
from tests.support.checkpoints import VOCABULARY, write_checkpoint
from tests.support.compiles import compile_tiny

STAGE = "calibrate-mcs,sensitivity{block=16},measure-orders"
LOWER = "stages(calibrate-mcs,sensitivity{block=16},daq-lower),pack"
PIPELINES = {
    "layer": f"stages({STAGE},allocate{{scope=layer%s}},daq-lower),pack",
    "stage": f"stages({STAGE},allocate{{scope=stage%s}},daq-lower),pack",
    "model": f"{STAGE},allocate{{scope=model%s}},{LOWER}",
    "loss": f"{STAGE},probe-loss{{probes=2}},allocate{{scope=model weights=loss%s}},{LOWER}",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("allocation") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=72, dtype=torch.float32)


@pytest.mark.parametrize("scope", list(PIPELINES))
def test_the_sign_bits_are_the_budget(scope: str, model: Path, tmp_path: Path) -> None:
    report = compile_tiny(model, tmp_path / "out", PIPELINES[scope] % "")
    assert report.sign_bits == 2
    assert any(" to=" in remark for remark in report.remarks)
    if scope in ("layer", "stage"):
        assert all(layer.sign_bits == 2 for layer in report.layers)
    else:
        assert len({layer.sign_bits for layer in report.layers}) > 1


@pytest.mark.parametrize(
    ("scope", "budget"),
    [
        ("stage", 3.0),
        ("model", 3.5),
        pytest.param("stage", 3.5, marks=pytest.mark.slow),
        pytest.param("model", 3.0, marks=pytest.mark.slow),
    ],
)
def test_effective_bits_are_proved_by_the_files(
    scope: str, budget: float, model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    options = f" count=effective budget={budget:g}"
    report = compile_tiny(model, out, PIPELINES[scope] % options)
    layers = {layer.name: layer for layer in report.layers}
    stored = 0
    for path in out.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if ".blocks." in name and name.rpartition(".")[2] != "weight":
                    stored += file.get_tensor(name).nbytes
    weights = sum(layer.rows * layer.columns for layer in layers.values())
    assert stored == sum(layer.nbytes for layer in layers.values())
    assert 8 * stored / weights == report.effective_bits <= budget
    assert report.effective_bits > budget - (0.1 if scope == "model" else 0.8)


def test_a_lowering_that_stores_more_is_refused_first(model: Path, tmp_path: Path) -> None:
    passes = (PIPELINES["stage"] % "").replace("daq-lower", "daq-lower{scale-bits=8}")
    with pytest.raises(
        InvalidPipeline, match="scales of 16 bits, and daq-lower stores them with 8"
    ):
        compile_tiny(model, tmp_path / "out", passes)


@pytest.mark.slow
def test_two_keeps_its_promise_in_the_files(tmp_path: Path) -> None:
    """All that is quantized, embedding and head included, at the budget that the preset has."""
    model = write_checkpoint(tmp_path / "wide", d_model=32, mlp_hidden_size=2304)
    two = standard_registry().presets["two"].text
    assert "budget" not in two  # allocate-rates' own, of 2 bits
    report = compile_tiny(model, tmp_path / "out", two.replace("lower{", "lower{window=8 "))
    stored = 0
    for path in (tmp_path / "out").glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118
                if name.rpartition(".")[2] != "weight":
                    stored += file.get_tensor(name).nbytes
    weights = sum(layer.rows * layer.columns for layer in report.layers) + 2 * VOCABULARY * 32
    assert 1.98 < 8 * stored / weights <= 2
