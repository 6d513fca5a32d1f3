"""``compile --backend triton``: the portable artifact, checked, and a list of launches."""

import json
from pathlib import Path

import pytest

import qdc
import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.listing import NAME, Kernels
from qdc.cli import run
from qdc.errors import QdcError
from tests.support.checkpoints import write_checkpoint
from tests.support.packed import MIXED, packed_artifact


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("model") / "m", d_model=96, mlp_hidden_size=80)


def test_the_artifact_is_the_portable_one(model: Path, tmp_path: Path) -> None:
    reference = packed_artifact(model, tmp_path / "reference")
    packed = packed_artifact(model, tmp_path / "triton", backend="triton")
    names = {path.name for path in packed.iterdir()}
    assert names == {NAME} | {path.name for path in reference.iterdir()}
    for path in reference.glob("*.safetensors*"):
        assert (packed / path.name).read_bytes() == path.read_bytes()
    config = json.loads((packed / "config.json").read_text())
    assert config["quantization_config"].pop("backend") == "triton"
    wanted = json.loads((reference / "config.json").read_text())
    assert wanted["quantization_config"].pop("backend") == "reference"
    assert config == wanted

    listed = Kernels.model_validate_json((packed / NAME).read_text())
    layers = [path for launch in listed.launches for group in launch.layers for path in group]
    assert sorted(layers) == sorted(config["quantization_config"]["layers"])
    groups = {
        tuple(path.rpartition(".")[2] for path in group): launch
        for launch in listed.launches
        for group in launch.layers
    }
    assert groups["q_proj", "k_proj", "v_proj"].rows == (96, 96, 96)
    assert groups["ff_proj", "up_proj"].kernels[4096] == "expand"
    assert groups["wte",].kernels[1] == "embedding"
    index = json.loads((packed / "model.safetensors.index.json").read_text())
    stored = sum(launch.stored_bytes * len(launch.layers) for launch in listed.launches)
    assert 0.9 < stored / index["metadata"]["total_size"] < 1


def test_what_no_kernel_runs_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    passes = MIXED.replace("block=32", "block=24")
    with pytest.raises(QdcError, match="multiples of 32 columns, not of 24") as caught:
        packed_artifact(model, tmp_path / "out", passes, backend="triton")
    assert "model.transformer.blocks.0.q_proj" in caught.value.where
    assert not (tmp_path / "out").exists()
    other = packed_artifact(model, tmp_path / "other", passes)
    with pytest.raises(QdcError, match="not of 24"):
        qdc.load(other, backend="triton")


def test_kernels_compiled_ahead_are_listed(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qdc.backends.triton import ahead
    from qdc.backends.triton.forms import Form, forms

    def compiled(forms: list[Form], architectures: list[int]) -> list[ahead.Compiled]:
        return [
            ahead.Compiled(
                kernel=form.name, dtype=form.dtype, architecture=one, registers=9, shared=0,
                spilled=0, mixed=0, instructions={}, per_sign=None,
            )
            for form in forms for one in architectures
        ]  # fmt: skip

    monkeypatch.setattr(ahead, "compile_all", compiled)
    out = packed_artifact(model, tmp_path / "out", "rtn-lower,pack", "triton{ahead=sm_80,sm_90}")
    found = json.loads((out / NAME).read_text())["compiled"]
    assert {one["architecture"] for one in found} == {80, 90}
    assert {one["kernel"] for one in found} == {form.name for form in forms()}


def test_the_plan_refuses_what_the_compile_would(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["plan", str(model), "--samples", "4", "--length", "16", "--json", "--backend"]
    sizes = []
    for backend in ("reference", "triton"):
        assert run([*command, backend, "--passes", MIXED]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["shards"])
    assert sizes[0] == sizes[1]
    assert run([*command, "triton", "--passes", MIXED.replace("block=32", "block=24")]) == 1
    assert "not of 24" in capsys.readouterr().err
