"""Every family: compiled with the usual pipeline, reloaded, and compared with a native class."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qdc
from qdc.checkpoint.folder import Checkpoint
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, Case, write_family
from tests.support.rotated import without_rotations
from tests.support.running import assert_packed_alike

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(CASES.values()), ids=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    return found


@pytest.fixture(scope="module")
def model(case: Case, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family(tmp_path_factory.mktemp("families") / "model", case)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    report = compile_tiny(model, model.with_name("out"), "default", samples=16, length=32)
    assert report.predicted_bytes == report.tensor_bytes
    return model.with_name("out")


def tokens() -> Tensor:
    return torch.randint(0, 2048, (2, 19), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_compiles_reloads_and_equals_the_native_class(
    case: Case, model: Path, artifact: Path
) -> None:
    loaded = qdc.load(artifact, backend="reference")
    state = without_rotations(loaded)
    state = case.fuse(case.config, state)
    assert set(state) - set(case.shapes(case.config)) == set()
    native = case.native_model(state)
    mask = torch.ones(2, 19, dtype=torch.int64)
    mask[1, 11:] = 0
    for given in (None, mask):
        found = loaded(tokens(), given)
        due = case.native_logits(native, tokens(), given)
        real = torch.ones_like(mask).bool() if given is None else given.bool()
        torch.testing.assert_close(found[real], due[real], atol=TOLERANCE, rtol=0)
    assert_packed_alike(artifact, lambda model: model(tokens(), mask)[mask.bool()])
    original = qdc.load_original(model)(tokens())
    apart = (loaded(tokens()) - original).square().mean() / original.square().mean()
    assert 1e-3 < float(apart) < 1.2  # unrelated logits would be 2 apart


def test_every_matrix_of_the_blocks_is_quantized_and_the_rest_is_as_it_was(
    case: Case, model: Path, artifact: Path
) -> None:
    settings = json.loads((artifact / "config.json").read_text())["quantization_config"]
    before = case.split(case.config, load_file(model / "model.safetensors"))
    shapes = {name: tensor.shape for name, tensor in before.items()}
    kept = {name for name in shapes if name.endswith(case.kept)}
    blocks = [n for n, shape in shapes.items() if len(shape) == 2 and n not in kept]
    assert {f"{layer}.weight" for layer in settings["layers"]} == set(blocks)
    assert {f"{module}.weight" for module in settings["modules_to_not_convert"]} == kept
    after = Checkpoint(artifact)
    for name in set(before) - set(blocks):
        assert torch.equal(after.tensor(name), before[name]), name


def test_the_artifact_keeps_the_published_configuration(case: Case, artifact: Path) -> None:
    config = json.loads((artifact / "config.json").read_text())
    assert {name: config[name] for name in case.config} == dict(case.config)
