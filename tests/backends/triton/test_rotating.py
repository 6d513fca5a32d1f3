"""Artifacts that rotate what layers read run packed: rotated once for all that read one value."""

from pathlib import Path

import pytest
import torch

import qdc
import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.checking import SWITCH, KernelMismatch
from qdc.backends.triton.listing import NAME, Kernels
from qdc.backends.triton.modules import PackedLinear
from qdc.backends.triton.turning import CheckedRotation, InputRotation
from qdc.errors import QdcError
from qdc.numerics.hadamard import RandomHadamard
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.natives import write_native
from tests.support.packed import MIXED, packed_artifact

ROTATED = MIXED.replace("stages(", "stages(rotate,")
TOKENS = torch.tensor([[5, 1, 9]])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rotating")
    write_checkpoint(folder / "model", d_model=96, mlp_hidden_size=80)
    return packed_artifact(folder / "model", folder / "out", ROTATED, backend="triton")


@pytest.mark.parametrize(
    ("columns", "dtype"),
    [(96, torch.float16), (576, torch.bfloat16), (1536, torch.float32), (6, torch.float32)],
)
def test_inputs_are_rotated_as_the_format_says(columns: int, dtype: torch.dtype) -> None:
    """To the last bit, rounded once, whatever the shape and the strides of what comes in."""
    x = torch.randn(2 * columns, 2, generator=torch.Generator().manual_seed(1)).T.to(dtype)
    wanted = RandomHadamard.of(columns, 5).forward(x.reshape(2, 2, columns).float())
    rotation = CheckedRotation(InputRotation(columns, 5, "cpu"), "a layer")
    whole, part = rotation(x.reshape(2, 2, columns)), rotation(x[:, :columns])
    assert whole.dtype == part.dtype == dtype
    # The interpreter cuts bf16 off, where a GPU rounds it.
    unit = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0.0
    torch.testing.assert_close(whole.float(), wanted.to(dtype).float(), rtol=unit, atol=0)
    torch.testing.assert_close(part.float(), wanted[:, 0].to(dtype).float(), rtol=unit, atol=0)
    assert rotation(x[:0, :columns]).shape == (0, columns)


def test_the_logits_are_those_of_the_reference(artifact: Path) -> None:
    packed = qdc.load(artifact, dtype=torch.float32, backend="triton")
    wanted = qdc.load(artifact, backend="reference")(TOKENS)
    torch.testing.assert_close(packed(TOKENS), wanted, rtol=1e-4, atol=1e-4)
    linears = [part for part in packed.modules() if isinstance(part, PackedLinear)]
    assert len(linears) < 15, "q, k and v of one block at least are joined"
    # In front of q, k and v, of the output, of gate and up, and of down; of none of the head.
    rotations = [part for part in packed.modules() if isinstance(part, InputRotation)]
    assert len(rotations) == 8


def test_layers_that_are_not_joined_share_a_rotation(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qdc.backends.triton.runtime.can_join", lambda codecs: False)
    packed = qdc.load(artifact, dtype=torch.float32, backend="triton")
    names = [name for name, part in packed.named_modules() if isinstance(part, PackedLinear)]
    assert len(names) == 15
    assert "model.transformer.blocks.0.q_proj" in names
    assert sum(isinstance(part, InputRotation) for part in packed.modules()) == 8
    wanted = qdc.load(artifact, backend="reference")(TOKENS)
    torch.testing.assert_close(packed(TOKENS), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_model_compiles_whole_in_half_precision(artifact: Path) -> None:
    packed = qdc.load(artifact, dtype=torch.float16, backend="triton")
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS), packed(TOKENS))
    again = qdc.load(artifact, dtype=torch.float16, backend="triton")
    again.load_state_dict(packed.state_dict(), strict=True)


def test_rotations_are_checked_with_the_kernels(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    packed = qdc.load(artifact, backend="triton")
    packed(TOKENS)
    wrong = next(part for part in packed.modules() if isinstance(part, CheckedRotation))
    wrong.rotation.signs.neg_()
    with pytest.raises(KernelMismatch, match=r"rotation in front of .*blocks\.0\."):
        packed(TOKENS)


@pytest.mark.slow
def test_a_model_that_is_not_traced_rotates_in_front_of_each_layer(tmp_path: Path) -> None:
    write_native(tmp_path / "model", "qwen2")
    passes = "quantize-vocab,stages(rotate,rtn-lower{group=32 bits=2}),pack"
    out = packed_artifact(tmp_path / "model", tmp_path / "out", passes)
    packed = qdc.load(out, dtype=torch.float32, backend="triton")
    assert sum(isinstance(part, InputRotation) for part in packed.modules()) == 14
    wanted = qdc.load(out, backend="reference")(TOKENS)
    torch.testing.assert_close(packed(TOKENS), wanted, rtol=1e-4, atol=1e-4)


def test_launches_say_what_is_rotated(artifact: Path) -> None:
    listed = Kernels.model_validate_json((artifact / NAME).read_text())
    found = {
        path.rpartition(".")[2]: launch.rotated
        for launch in listed.launches
        for group in launch.layers
        for path in group
    }
    assert (found["q_proj"], found["attn_out"], found["wte"]) == (32, 32, 0)


def test_codes_of_inputs_stay_refused(artifact: Path, tmp_path: Path) -> None:
    """What is in the way is named, and nothing else."""
    model = artifact.parent / "model"
    passes = "rotate,quantize-activations,rtn-lower{bits=8},pack"
    with pytest.raises(QdcError) as writing:
        compile_tiny(model, tmp_path / "out", passes, backend="triton")
    assert writing.value.what.startswith("quantize-activations changes what linears read")
    compile_tiny(model, tmp_path / "out", passes)
    with pytest.raises(QdcError) as loading:
        qdc.load(tmp_path / "out", backend="triton")
    assert loading.value.what.endswith("linears of the artifact quantize what they read")
