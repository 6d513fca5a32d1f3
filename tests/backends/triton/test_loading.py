"""Artifacts that run packed, in Triton's interpreter: the same model, and nothing dense."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qdc
import tests.support.interpreter  # noqa: F401
from qdc.backends.triton.checking import SWITCH, Checked, KernelMismatch
from qdc.backends.triton.modules import PackedEmbedding, PackedLinear
from qdc.cli import run
from qdc.errors import QdcError, UnsupportedModel
from qdc.models.layers import Attention
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.families import CASES, write_family
from tests.support.modules import NanoGPT, filled, ids
from tests.support.natives import write_native
from tests.support.packed import packed_artifact

TOKENS = torch.tensor([[5, 6, 7, 1, 9], [8, 1, 1, 3, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
WIDER = {"llada-moe": {"expert_intermediate_size": 64}}
Artifact = Callable[[str], Path]


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Compile a tiny model of a family or of transformers, once each."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("packed")
            if name == "llada":
                write_checkpoint(folder / "model", d_model=96, mlp_hidden_size=80)
                made[name] = packed_artifact(folder / "model", folder / "out")
            elif name in CASES:
                config = {**CASES[name].config, **WIDER.get(name, {})}
                write_family(folder / "model", replace(CASES[name], config=config))
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
    # Two blocks of q/k/v, attention out, gate/up and down, and the head; four experts for one.
    [("dream", 9), ("llada-moe", 21)],
)
def test_fp32_gives_the_logits_of_the_reference(
    artifact: Artifact, name: str, linears: int
) -> None:
    reference = qdc.load(artifact(name), backend="reference")
    packed = qdc.load(artifact(name), dtype=torch.float32, backend="triton")
    assert count(packed, PackedLinear) == linears
    assert count(packed, PackedEmbedding) == 1
    assert type(packed) is type(reference)
    assert not packed.training
    # Sums of at most 160 terms of size about 1, in another order.
    torch.testing.assert_close(packed(TOKENS, MASK), reference(TOKENS, MASK), rtol=1e-4, atol=1e-4)


def test_nothing_dense_stays_and_nothing_is_missing(artifact: Artifact) -> None:
    reference = qdc.load(artifact("llada"), backend="reference")
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
    reference = qdc.load(artifact("dream"), backend="reference")
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
    wrong.packed.get_buffer("pair_planes").bitwise_not_()
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
    assert head.get_buffer("codes").data_ptr() == embedding.get_buffer("codes").data_ptr()
    # A class of transformers is not traced: q, k and v stay three.
    assert count(packed, PackedLinear) == 15
    wanted = qdc.load(artifact("qwen2"), backend="reference")(TOKENS, MASK)
    torch.testing.assert_close(packed(TOKENS, MASK), wanted, rtol=1e-4, atol=1e-4)


def test_layers_of_other_orders_stay_apart(artifact: Artifact, tmp_path: Path) -> None:
    out = unsealed(artifact("llada"), tmp_path / "copy")
    config = json.loads((out / "config.json").read_text())
    layers = config["quantization_config"]["layers"]
    assert {order for layer in layers.values() for order in layer.get("orders", ())} == {1, 2, 3}
    value = "model.transformer.blocks.0.v_proj"
    fields = layers[value]
    fields["orders"] = fields["orders"][::-1]
    assert fields["orders"] != layers[value.replace("v_proj", "q_proj")]["orders"]
    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    shard = out / index[f"{value}.orders"]
    tensors = load_file(shard)
    tensors[f"{value}.orders"] = tensors[f"{value}.orders"].flip(0)
    save_file(tensors, shard)
    (out / "config.json").write_text(json.dumps(config))

    packed = qdc.load(out, dtype=torch.float32, backend="triton")
    names = {name for name, part in packed.named_modules() if isinstance(part, PackedLinear)}
    block = "model.transformer.blocks."
    assert {f"{block}0.q_proj_k_proj", f"{block}0.v_proj", f"{block}1.q_proj_k_proj_v_proj"} < names
    wanted = qdc.load(out, backend="reference")(TOKENS)
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
    with pytest.raises(QdcError, match="ahead") as given:
        qdc.load(artifact("llada"), backend="triton{ahead=sm_90}")
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(QdcError, match="CUDA") as absent:
        qdc.load(artifact("llada"), backend="triton")
    assert "qdc compile" in given.value.help
    assert "--backend reference" in absent.value.help
    assert "reference" in odd.value.help


def test_a_module_that_is_no_linear_is_refused() -> None:
    from qdc.backends.triton.runtime import PackedRuntime
    from qdc.format.uniformgrid import UniformGrid

    class Own(nn.Linear):
        pass

    module = nn.ModuleDict({"own": Own(32, 8)})
    runtime = PackedRuntime(torch.device("cpu"), torch.bfloat16, checked=False)
    with pytest.raises(UnsupportedModel) as caught:
        runtime.check(module, {"own": UniformGrid(rows=8, columns=32, group=32, bits=8)})
    assert caught.value.where == ("own: Own",)


def test_the_command_runs_artifacts_and_no_checkpoints(
    artifact: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    out = artifact("llada")
    assert run(["run", str(out), "ab<mask>", "--backend", "triton", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["filled"]) == 1
    assert run(["run", str(out.parent / "model"), "ab<mask>", "--backend", "triton"]) == 1
    assert "the model is not compiled, and the backend triton" in capsys.readouterr().err


def test_a_module_of_its_users_runs_packed(tmp_path: Path) -> None:
    """Into a fresh module, the tied head included; buffers keep their values and dtypes."""
    module = filled(NanoGPT())
    passes = "quantize-vocab,rtn-lower{bits=4},pack"
    qdc.compile(module, passes, out=tmp_path / "out", mask_token_id=60, write_report=False)
    fresh = NanoGPT()
    packed = qdc.load(tmp_path / "out", module=fresh, backend="triton", dtype=torch.float32)
    assert packed is fresh
    assert count(packed, PackedLinear) == 9
    assert count(packed, PackedEmbedding) == 1
    reference = qdc.load(tmp_path / "out", module=NanoGPT(), backend="reference")
    tokens = ids(2, 7)
    torch.testing.assert_close(packed(tokens)[0], reference(tokens)[0], rtol=1e-4, atol=1e-4)
    assert not any(tensor.is_meta for tensor in packed.state_dict().values())
    assert torch.equal(fresh.scale, module.scale)
