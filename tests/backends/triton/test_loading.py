"""Artifacts that run packed, in Triton's interpreter: the same model, and nothing dense."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import qdc
import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.checking import SWITCH, Checked, KernelMismatch
from qdc.backends.triton.modules import PackedEmbedding, PackedLinear
from qdc.errors import QdcError, UnsupportedModel
from qdc.models.layers import Attention
from tests.support.families import CASES, write_family
from tests.support.natives import write_native
from tests.support.packed import MIXED, packed_artifact

TOKENS = torch.tensor([[5, 6, 7, 1, 9], [8, 1, 1, 3, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
Artifact = Callable[[str], Path]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Compile a tiny model of a family or of transformers, once each."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("packed")
            if name in CASES:
                write_family(folder / "model", CASES[name])
                made[name] = packed_artifact(folder / "model", folder / "out")
            else:
                write_native(folder / "model", name)
                passes = "quantize-vocab,rtn-lower{group=32 bits=2},pack"
                made[name] = packed_artifact(folder / "model", folder / "out", passes)
        return made[name]

    return get


def count(module: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in module.modules())


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize(
    ("name", "linears"),
    # Two blocks of q/k/v, attention out, gate/up and down, and the head; three experts for one.
    [("llada", 9), ("dream", 9), ("llada-moe", 21)],
)
def test_fp32_gives_the_logits_of_the_reference(
    artifact: Artifact, name: str, linears: int
) -> None:
    reference = qdc.load(artifact(name))
    packed = qdc.load(artifact(name), dtype=torch.float32, backend="triton")
    assert count(packed, PackedLinear) == linears
    assert count(packed, PackedEmbedding) == 1
    assert type(packed) is type(reference)
    assert not packed.training
    # Sums of at most 160 terms of size about 1, in another order.
    torch.testing.assert_close(packed(TOKENS, MASK), reference(TOKENS, MASK), rtol=1e-4, atol=1e-4)


def test_nothing_dense_stays_and_nothing_is_missing(artifact: Artifact) -> None:
    reference = qdc.load(artifact("llada"))
    packed = qdc.load(artifact("llada"), backend="triton")
    tensors = [*packed.parameters(), *packed.buffers()]
    assert not any(tensor.is_meta or tensor.requires_grad for tensor in tensors)
    plain = dict(packed.named_parameters())
    kept = {name for name, tensor in reference.named_parameters() if tensor.dim() == 1}
    assert set(plain) == kept
    assert {tensor.dtype for tensor in plain.values()} == {torch.bfloat16}
    assert count(packed, Attention) == count(reference, Attention)
    state = packed.state_dict()
    again = qdc.load(artifact("llada"), backend="triton")
    again.load_state_dict(state, strict=True)
    assert torch.equal(again(TOKENS), packed(TOKENS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_every_layer_is_as_exact_as_its_dtype(
    artifact: Artifact, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SWITCH, "1")
    packed = qdc.load(artifact("dream"), dtype=dtype, backend="triton")
    assert count(packed, Checked) == 10
    reference = qdc.load(artifact("dream"))
    logits = packed(TOKENS, MASK)
    assert logits.dtype == dtype
    # Each of the 14 roundings of a block moves the residual stream by about u of its size, at
    # random; 2 blocks and the ends make about 30 of them, and sqrt(30) u is 5.5 u.
    assert relative(logits, reference(TOKENS, MASK)) < 16 * torch.finfo(dtype).eps / 2


def test_a_wrong_kernel_is_named(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "1")
    packed = qdc.load(artifact("llada"), backend="triton")
    checked = [part for part in packed.modules() if isinstance(part, Checked)]
    [wrong] = [part for part in checked if part.label.endswith("blocks.1.attn_out")]
    for name, buffer in wrong.packed.named_buffers():
        if name == "planes":
            buffer[0, 0] ^= 255
    with pytest.raises(KernelMismatch, match=r"blocks\.1\.attn_out is off by .* explains"):
        packed(TOKENS)
    monkeypatch.setenv(SWITCH, "yes")
    with pytest.raises(QdcError, match=SWITCH):
        qdc.load(artifact("llada"), backend="triton")


def test_a_tied_head_shares_the_packed_embedding(artifact: Artifact) -> None:
    packed = qdc.load(artifact("qwen2"), dtype=torch.float32, backend="triton")
    [embedding] = [part for part in packed.modules() if isinstance(part, PackedEmbedding)]
    head = packed.get_submodule("body.lm_head")
    assert isinstance(head, PackedLinear)
    assert head.codes.data_ptr() == embedding.codes.data_ptr()
    # A class of transformers is not traced: q, k and v stay three.
    assert count(packed, PackedLinear) == 15
    wanted = qdc.load(artifact("qwen2"))(TOKENS, MASK)
    torch.testing.assert_close(packed(TOKENS, MASK), wanted, rtol=1e-4, atol=1e-4)


def test_layers_of_other_orders_stay_apart(tmp_path: Path) -> None:
    write_family(tmp_path / "model", CASES["llada"], seed=3)
    passes = MIXED.replace("{ratio=0.4}", "{ratio=0.5 scope=layer}")
    out = packed_artifact(tmp_path / "model", tmp_path / "out", passes)
    packed = qdc.load(out, dtype=torch.float32, backend="triton")
    assert count(packed, PackedLinear) > 9
    wanted = qdc.load(out)(TOKENS)
    torch.testing.assert_close(packed(TOKENS), wanted, rtol=1e-4, atol=1e-4)


def test_the_joined_model_compiles_whole(artifact: Artifact) -> None:
    packed = qdc.load(artifact("llada"), backend="triton")
    compiled = torch.compile(packed, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert torch.equal(compiled(TOKENS), packed(TOKENS))


def test_what_cannot_run_says_so_and_names_the_reference(
    artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(QdcError, match="float64") as odd:
        qdc.load(artifact("llada"), dtype=torch.float64, backend="triton")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(QdcError, match="CUDA") as absent:
        qdc.load(artifact("llada"), backend="triton")
    assert "--backend reference" in absent.value.help
    assert "reference" in odd.value.help


def test_a_module_that_is_no_linear_is_refused() -> None:
    from qdc.backends.triton.runtime import PackedRuntime
    from qdc.uniformgrid import UniformGrid

    class Own(nn.Linear):
        pass

    module = nn.ModuleDict({"own": Own(32, 8)})
    runtime = PackedRuntime(torch.device("cpu"), torch.bfloat16, checked=False)
    with pytest.raises(UnsupportedModel) as caught:
        runtime.check(module, {"own": UniformGrid(rows=8, columns=32, group=32, bits=8)})
    assert caught.value.where == ("own: Own",)
