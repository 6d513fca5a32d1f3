"""Artifacts that run packed on a CPU: what is loaded, what is said, and who runs by default."""

from pathlib import Path

import pytest
import torch
from torch import nn

import qdc
from qdc.backends.cpu import runtime
from qdc.backends.cpu.modules import PackedEmbedding, PackedLinear
from qdc.cli.models import open_runnable
from qdc.errors import QdcError
from qdc.format.codec import Codec
from qdc.format.latticecode import LatticeCode
from qdc.format.uniformgrid import UniformGrid
from qdc.runtime import auto
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import decode
from qdc.runtime.decoding.options import DecodeOptions
from tests.support.checkpoints import write_checkpoint
from tests.support.natives import write_native
from tests.support.packed import packed_artifact

TOKENS = torch.tensor([[5, 6, 7, 1, 9], [8, 1, 1, 3, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Planes of orders 1 to 3, ragged blocks, and a vocabulary of 8 bits."""
    folder = tmp_path_factory.mktemp("packed")
    write_checkpoint(folder / "model", d_model=96, mlp_hidden_size=80)
    return packed_artifact(folder / "model", folder / "out")


def kinds(module: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [part for part in module.modules() if isinstance(part, kind)]


def test_a_loaded_model_holds_no_dense_weight(artifact: Path) -> None:
    packed, dense = qdc.load(artifact), qdc.load(artifact, backend="reference")
    assert type(packed) is type(dense)
    assert not packed.training
    assert len(kinds(packed, PackedLinear)) == 2 * 7 + 1
    assert len(kinds(packed, PackedEmbedding)) == 1
    tensors = [*packed.parameters(), *packed.buffers()]
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)
    assert all(parameter.dim() == 1 for parameter in packed.parameters())
    assert packed(TOKENS, MASK).dtype == torch.float32
    half = qdc.load(artifact, dtype=torch.bfloat16)(TOKENS, MASK)
    assert half.dtype == torch.bfloat16
    assert float((half - dense(TOKENS, MASK)).norm() / dense(TOKENS, MASK).norm()) < 0.05


def test_the_state_of_a_model_is_that_of_another(artifact: Path) -> None:
    one, other = qdc.load(artifact), qdc.load(artifact)
    other.load_state_dict(one.state_dict(), strict=True)
    assert torch.equal(other(TOKENS), one(TOKENS))


def test_a_tied_head_reads_the_same_codes(tmp_path: Path) -> None:
    write_native(tmp_path / "model", "qwen2")
    passes = "quantize-vocab,rtn-lower{group=32 bits=2},pack"
    out = packed_artifact(tmp_path / "model", tmp_path / "out", passes)
    packed = qdc.load(out)
    [embedding] = kinds(packed, PackedEmbedding)
    head = packed.get_submodule("body.lm_head")
    assert isinstance(head, PackedLinear)
    assert head.get_buffer("bits").data_ptr() == embedding.get_buffer("codes").data_ptr()


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_decoding_takes_the_same_tokens(artifact: Path, cache: str) -> None:
    facts = open_runnable(artifact, "cpu", []).decoding
    options = DecodeOptions.model_validate({"length": 8, "block": 4, "cache": cache})
    prompts = [[7, 8, 9], [20]]
    dense, packed = (
        decode(qdc.load(artifact, backend=backend), prompts, options, facts).answers
        for backend in ("reference", "cpu{arithmetic=f32}")
    )
    assert packed == dense
    assert isinstance(facts, DecodeFacts)


def test_auto_is_packed_on_a_cpu_alone(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert auto.chosen_backend("auto", "cpu", None) == "cpu"
    assert auto.chosen_backend("auto", "cpu", None, exact=True) == "cpu{arithmetic=f32}"
    assert auto.chosen_backend("auto", "cpu", torch.float64) == "reference"
    assert auto.chosen_backend("auto", "cuda", None) == "reference"
    assert auto.chosen_backend("triton", "cpu", None) == "triton"
    assert qdc.load(artifact, dtype=torch.float64)(TOKENS).dtype == torch.float64
    monkeypatch.setattr(auto, "find_spec", lambda name: None)
    assert not kinds(qdc.load(artifact), PackedLinear)
    assert not caplog.records
    monkeypatch.setattr(auto, "LARGE", 1000)
    qdc.load(artifact)
    assert "all weights are decoded" in caplog.text


def test_commands_run_packed_and_figures_are_computed_in_fp32(artifact: Path) -> None:
    def arithmetic(exact: bool) -> set[str]:
        module = open_runnable(artifact, "cpu", [], exact=exact).module
        return {str(part.arithmetic) for part in kinds(module, PackedLinear)}

    assert arithmetic(exact=False) == {"fast"}
    assert arithmetic(exact=True) == {"f32"}
    opened = open_runnable(artifact, "cpu", [], "reference", exact=True)
    assert not kinds(opened.module, PackedLinear)


def test_what_it_cannot_run_is_refused(artifact: Path) -> None:
    with pytest.raises(QdcError, match="float64") as wide:
        qdc.load(artifact, dtype=torch.float64, backend="cpu")
    assert "reference" in wide.value.help
    with pytest.raises(QdcError, match="arithmetic"):
        qdc.load(artifact, backend="cpu{arithmetic=f8}")


def test_slow_layers_are_named(caplog: pytest.LogCaptureFixture) -> None:
    class Own(nn.Linear):
        pass

    module = nn.ModuleDict({"own": Own(32, 8), "odd": nn.Linear(32, 8)})
    made = runtime.CpuRuntime(torch.device("cpu"), torch.float32, "fast")
    codecs: dict[str, Codec] = {
        "own": UniformGrid(rows=8, columns=32, group=32, bits=8),
        "odd": LatticeCode(rows=8, columns=32),
    }
    made.check(module, codecs)
    own, odd = (record.getMessage() for record in caplog.records)
    assert "1 quantized weights are decoded when the model is loaded" in own
    assert own.endswith(": own")
    assert "1 layers are stored as e8p" in odd
    assert "--backend reference" in odd
