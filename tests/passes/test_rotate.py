"""rotate: what a model computes stays as it is, what is measured and rounded is rotated."""

import json
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import qdc
from qdc.backends.reference import Reference
from qdc.errors import InvalidArtifact, InvalidPipeline, QdcError, UnsupportedModel
from qdc.ir.activations import Rotation
from qdc.ir.annotations import Moment
from qdc.ir.cross import CrossMoment
from qdc.numerics.hadamard import RandomHadamard
from qdc.passes.rotate import Rotate
from qdc.pipeline.backendbase import Runtime
from qdc.pipeline.registry import standard_registry
from qdc.runtime.dense import DenseRuntime
from qdc.runtime.load import load_artifact
from qdc.streaming.unit import Unit
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny, make_job, run_passes, spying
from tests.support.graphs import two_blocks

FINE = "rtn-lower{bits=8 group=8},pack"
"""Weights of which next to nothing is lost, so that all else that is lost would show."""
OPTIONS = "samples=3 length=12 seed=7"
Found = dict[str, tuple[Tensor, Tensor, Tensor, RandomHadamard | None]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rotate") / "model"
    return write_checkpoint(folder, d_model=32, mlp_hidden_size=48, dtype=torch.float32)


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rotate") / "out"
    compile_tiny(model, out, f"rotate{{seed=5}},{FINE}")
    return out


def test_rotations_of_heads_are_folded_into_weights(model: Path, tmp_path: Path) -> None:
    """Nothing is computed for the linear behind an attention, and it is rotated all the same."""
    compile_tiny(model, tmp_path / "out", f"rotate{{seed=5 fold=heads}},{FINE}")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    turned = {path.rpartition(".")[2] for path in config["activations"]}
    assert turned == {"q_proj", "k_proj", "v_proj", "ff_proj", "up_proj", "ff_out"}
    tokens = torch.arange(2, 26).view(2, 12)
    original, loaded = qdc.load_original(model), qdc.load(tmp_path / "out", backend="reference")
    wanted, found = original(tokens), loaded(tokens)
    assert float((found - wanted).norm() / wanted.norm()) < 0.03
    path = next(name for name in config["layers"] if name.endswith("attn_out"))
    weights = [m.get_submodule(path).get_parameter("weight") for m in (original, loaded)]
    assert float((weights[0] - weights[1]).norm() / weights[0].norm()) > 0.5


@pytest.mark.parametrize("backend", ["reference", "cpu{arithmetic=f32}"])
def test_the_model_computes_what_it_did(model: Path, artifact: Path, backend: str) -> None:
    tokens = torch.arange(2, 26).view(2, 12)
    wanted = qdc.load_original(model)(tokens)
    found = qdc.load(artifact, backend=backend)(tokens)
    assert float((found - wanted).norm() / wanted.norm()) < 0.03


def test_the_stored_weight_is_the_rotated_one(model: Path, artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())["quantization_config"]
    assert config["format_version"] == 2
    path = next(name for name in config["layers"] if name.endswith("q_proj"))
    seed = config["activations"][path]["rotation"]
    original = qdc.load_original(model).get_submodule(path).weight
    stored = qdc.load(artifact, backend="reference").get_submodule(path).weight
    assert isinstance(original, Tensor)
    assert isinstance(stored, Tensor)
    rotated = RandomHadamard.of(original.shape[1], seed).forward(original)
    assert float((stored - rotated).norm() / rotated.norm()) < 0.01
    assert float((stored - original).norm() / original.norm()) > 0.5


def test_without_it_the_configuration_is_that_of_the_first_version(
    model: Path, tmp_path: Path
) -> None:
    compile_tiny(model, tmp_path / "out", FINE)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format_version"] == 1
    assert "activations" not in config


def collect(model: Path, folder: Path, passes: str) -> Found:
    found: Found = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            note = unit.graph.get(node.name, Rotation)
            turn = None if note is None else RandomHadamard.of(node.columns, note.seed)
            moment = unit.get(unit.graph.require(node.name, Moment).tensor).clone()
            cross = unit.get(unit.graph.require(node.name, CrossMoment).tensor).clone()
            found[node.name] = moment, cross, unit.weight(node), turn

    text = folder / "text.txt"
    text.write_text("a deterministic walk through the standard library. " * 40)
    run_passes(model, folder, spying(look), passes, stop_after="rtn-lower", calibration=text)
    return found


def test_statistics_and_weights_are_those_of_rotated_inputs(model: Path, tmp_path: Path) -> None:
    """Behind layers of 8 bits and small groups next to nothing has drifted but by rounding."""
    passes = f"stages(calibrate-cross{{{OPTIONS}}},spy,rtn-lower{{bits=8 group=8}})"
    plain = collect(model, tmp_path, passes)
    rotated = collect(model, tmp_path, passes.replace("stages(", "stages(rotate,"))
    assert plain.keys() == rotated.keys()
    for name, (moment, _, weight, turn) in rotated.items():
        before, _, original, _ = plain[name]
        assert turn is not None
        both = turn.forward(turn.forward(before).T.contiguous())
        assert float((moment - both).norm() / both.norm()) < 0.05, name
        torch.testing.assert_close(weight, turn.forward(original))


@pytest.mark.parametrize("fold", ["none", "heads"])
def test_drift_is_measured_in_rotated_coordinates(model: Path, tmp_path: Path, fold: str) -> None:
    lower = "spy,rtn-lower{bits=8 group=8}"
    passes = f"stages(rotate{{fold={fold}}},calibrate-cross{{{OPTIONS}}},{lower})"
    drifts: dict[str, float] = {}

    def look(label: str, unit: Unit) -> None:
        for node in unit.layers():
            drifts[node.name] = unit.graph.require(node.name, CrossMoment).drift

    text = tmp_path / "text.txt"
    text.write_text("a deterministic walk through the standard library. " * 40)
    run_passes(model, tmp_path, spying(look), passes, stop_after="rtn-lower", calibration=text)
    # One coordinate system for both streams: what nothing was quantized before has not drifted.
    assert drifts["blocks.0.q_proj"] < 1e-9
    assert 0 < drifts["blocks.0.attn_out"] < 0.1
    assert 0 < drifts["blocks.0.ff_out"] < 0.1


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("stages(calibrate-mcs,rotate,rtn-lower),pack", "@moment"),
        ("rtn-lower,rotate,pack", "@lowered"),
        ("rotate{seed=1},rotate{seed=2},rtn-lower,pack", "twice"),
        ("rotate,stages(calibrate-mcs,sensitivity,quip-lower),pack", "quip-lower"),
        ("rotate,stages(calibrate-mcs,sensitivity,trellis-lower),pack", "trellis-lower"),
    ],
)
def test_what_it_would_make_wrong_is_refused(
    model: Path, tmp_path: Path, passes: str, said: str
) -> None:
    with pytest.raises(InvalidPipeline, match=said):
        compile_tiny(model, tmp_path / "out", passes)


def test_backends_that_cannot_say_it_refuse(model: Path, tmp_path: Path) -> None:
    registry = standard_registry()
    registry.add(type("Mute", (Reference,), {"name": "mute", "activations": ()}))
    with pytest.raises(InvalidPipeline, match="mute does not follow"):
        make_job(model, tmp_path / "out", registry, passes=f"rotate,{FINE}", backend="mute")


def test_an_odd_number_of_columns_is_left_alone() -> None:
    graph = two_blocks(columns=33)
    Rotate().check(graph)
    stage = graph.regions[0].stages[0]
    assert not list(Rotate().notes(graph, stage, graph[stage.layers[0]]))


def test_heads_are_folded_where_there_are_some() -> None:
    with pytest.raises(UnsupportedModel, match="no attention"):
        Rotate(fold="heads").check(two_blocks())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"format_version": 1}, "version"),
        ({"activations": {"model.transformer.wte": {"rotation": 1}}}, "not quantized"),
        ({"activations": {"PATH": {"rotation": -1}}}, "rotation"),
        ({"activations": {"PATH": {"turn": 1}}}, "turn"),
    ],
)
def test_a_hostile_configuration_is_refused(
    artifact: Path, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    copy = unsealed(artifact, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    path = next(iter(config["quantization_config"]["layers"]))
    written = json.dumps(config | {"quantization_config": config["quantization_config"] | change})
    (copy / "config.json").write_text(written.replace("PATH", path))
    with pytest.raises(InvalidArtifact) as caught:
        qdc.load(copy)
    assert said in str(caught.value)


def test_a_backend_that_does_not_follow_is_refused(artifact: Path) -> None:
    class Deaf(DenseRuntime):
        follows_activations = False

    class Old(Reference):
        name: ClassVar[str] = "old"

        def runtime(self, device: torch.device, dtype: torch.dtype | None) -> Runtime:
            return Deaf(device, torch.float32)

    registry = standard_registry()
    registry.add(Old)
    with pytest.raises(QdcError, match=r"does not follow.*rotate what they read"):
        load_artifact(artifact, registry, "cpu", None, "old")
