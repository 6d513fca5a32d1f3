"""Where no one rotates what layers read, rotations are multiplied out of their weights."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

import qdc
from qdc.artifact.writer import EXPORT
from qdc.checkpoint.folder import Checkpoint
from qdc.cli import run
from qdc.errors import QdcError, UnsupportedModel
from qdc.format.ggml import Ggml
from qdc.gguf.writing import refuse_rotated_blocks
from qdc.ir.keys import file_key
from qdc.numerics.hadamard import RandomHadamard
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import PLAIN, compile_tiny
from tests.support.ggufs import needs_gguf
from tests.support.handovers import logits
from tests.support.modules import NanoGPT, filled, ids

ROTATED = "quantize-vocab," + PLAIN.replace("stages(", "stages(rotate,")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rotated")
    write_checkpoint(folder / "model", d_model=32, mlp_hidden_size=96)
    compile_tiny(folder / "model", folder / "out", ROTATED)
    return folder / "out"


def apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_a_checkpoint_computes_the_same_without_rotations(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", str(artifact), "-o", str(tmp_path / "dense"), "--dtype", "f32", "--verify"]
    assert run(command) == 0
    assert "14 layers read rotated inputs: multiplied out" in capsys.readouterr().out
    assert json.loads((tmp_path / "dense" / EXPORT).read_text())["unrotated"] == 14
    wanted = logits(qdc.load(artifact, backend="reference"))
    assert apart(logits(qdc.load_original(tmp_path / "dense")), wanted) < 1e-5


def test_half_weights_are_rounded_once(artifact: Path, tmp_path: Path) -> None:
    report = qdc.export(artifact, out=tmp_path / "dense", dtype="bf16", verify=True)
    assert report.verification is not None
    config = json.loads((artifact / "config.json").read_text())["quantization_config"]
    loaded, written = qdc.load(artifact, backend="reference"), Checkpoint(tmp_path / "dense")
    for path, does in config["activations"].items():
        stored = loaded.get_submodule(path).get_parameter("weight")
        wanted = RandomHadamard.of(stored.shape[1], does["rotation"]).inverse(stored)
        assert torch.equal(written.tensor(file_key(path)), wanted.bfloat16()), path


def test_integers_stay_in_their_coordinates(tmp_path: Path) -> None:
    """They are packed as they are, so that a rotation of their inputs has no place."""
    write_checkpoint(tmp_path / "model", d_model=64, mlp_hidden_size=64)
    passes = "stages(rotate,rtn-lower{bits=4 group=64 zero=packed}),pack"
    compile_tiny(tmp_path / "model", tmp_path / "out", passes)
    with pytest.raises(QdcError, match="14 of 14 layers cannot be packed") as caught:
        qdc.export(tmp_path / "out", out=tmp_path / "packed", format="compressed-tensors")
    assert "rotates what it reads" in caught.value.where[0]


@needs_gguf
def test_a_gguf_file_is_decoded_without_rotations(tmp_path: Path) -> None:
    from gguf import GGUFReader

    model = write_checkpoint(tmp_path / "model", d_model=64, mlp_hidden_size=64, n_layers=1)
    compile_tiny(model, tmp_path / "out", "rotate,rtn-lower{bits=8 group=8},pack")
    report = qdc.export(tmp_path / "out", out=tmp_path / "out.gguf", format="gguf", verify=True)
    assert (report.unrotated, report.decoded) == (7, 7)
    compile_tiny(
        model, tmp_path / "again.gguf", "rotate,rtn-lower{bits=8 group=8},pack", backend="gguf"
    )
    found = {each.name: each.data for each in GGUFReader(str(tmp_path / "again.gguf")).tensors}
    original = Checkpoint(model).tensor("model.transformer.blocks.0.ff_out.weight")
    written = torch.from_numpy(found["blk.0.ffn_down.weight"].copy())
    assert apart(written.float(), original.float()) < 0.01


def test_blocks_of_ggml_have_no_rotation_multiplied_out() -> None:
    codecs = {
        "a": Ggml(rows=2, columns=256, type="Q2_K"),
        "b": Ggml(rows=2, columns=256, type="Q2_K"),
    }
    with pytest.raises(UnsupportedModel, match="cannot have a rotation") as caught:
        refuse_rotated_blocks(codecs, ["b"])
    assert caught.value.where == ("b",)
    refuse_rotated_blocks(codecs, [])


@pytest.mark.parametrize("backend", ["reference", "cpu{arithmetic=f32}"])
def test_a_module_of_its_users_computes_the_same(tmp_path: Path, backend: str) -> None:
    """Dense weights have rotations multiplied out, packed linears compute them."""
    module = filled(NanoGPT())
    passes = "rotate,rtn-lower{bits=8 group=8},pack"
    qdc.compile(module, passes, out=tmp_path / "out", mask_token_id=60, write_report=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert set(config["activations"]) == set(config["layers"])
    loaded = qdc.load(tmp_path / "out", module=NanoGPT(), backend=backend)
    tokens = ids(2, 7)
    assert apart(loaded(tokens)[0], module(tokens)[0]) < 0.03


def test_rotations_that_a_module_cannot_have_are_refused(tmp_path: Path) -> None:
    """Rows that are looked up are not multiplied: backends would read them in two ways."""
    passes = "quantize-vocab,rotate,rtn-lower{bits=8 group=8},pack"
    qdc.compile(
        filled(NanoGPT()), passes, out=tmp_path / "out", mask_token_id=60, write_report=False
    )
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["activations"]["transformer.wte"] = {"rotation": 5}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(QdcError) as caught:
        qdc.load(tmp_path / "out", module=NanoGPT(), backend="reference", verify=False)
    assert caught.value.where == (
        "transformer.wte: an embedding in the module, rotated in the artifact",
    )
