"""An artifact of trellis codes runs packed: the same model, joined where codes allow it."""

from pathlib import Path

import pytest
import torch

import qdc
import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.checking import SWITCH
from qdc.backends.triton.listing import NAME, Kernels
from qdc.backends.triton.modules import PackedLinear
from tests.support.checkpoints import write_checkpoint
from tests.support.packed import packed_artifact

PASSES = "quantize-vocab,stages(calibrate-mcs,sensitivity{damp=0.1},trellis-lower{window=8}),pack"
TOKENS = torch.tensor([[5, 6, 7, 1, 9], [8, 1, 1, 3, 2]])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rings")
    write_checkpoint(folder / "model", d_model=96, mlp_hidden_size=80)
    return packed_artifact(folder / "model", folder / "out", PASSES, backend="triton")


def test_the_logits_are_those_of_the_reference(artifact: Path) -> None:
    packed = qdc.load(artifact, dtype=torch.float32, backend="triton")
    names = {name for name, part in packed.named_modules() if isinstance(part, PackedLinear)}
    assert "model.transformer.blocks.0.q_proj_k_proj_v_proj" in names
    assert not any(parameter.dim() > 1 for parameter in packed.parameters())
    wanted = qdc.load(artifact, backend="reference")(TOKENS)
    torch.testing.assert_close(packed(TOKENS), wanted, rtol=1e-4, atol=1e-4)


def test_every_layer_is_as_exact_as_its_dtype(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    packed = qdc.load(artifact, backend="triton")
    packed(TOKENS)


def test_launches_are_listed(artifact: Path) -> None:
    listed = Kernels.model_validate_json((artifact / NAME).read_text())
    found = {
        tuple(path.rpartition(".")[2] for path in group): launch
        for launch in listed.launches
        for group in launch.layers
    }
    joined = found["q_proj", "k_proj", "v_proj"]
    assert (joined.codec, joined.rows, joined.orders) == ("trellis", (96, 96, 96), {})
    assert joined.kernels[1] == "rings-64x16-w4-s3"
    assert joined.kernels[4096] == "expand"
