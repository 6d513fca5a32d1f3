"""Packed integers: the library decompresses our weights, transformers computes our logits."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3MoeConfig

import qdc
from qdc.artifact.writer import EXPORT
from qdc.checkpoint.folder import Checkpoint
from qdc.cli.export import _summary
from qdc.errors import ExportDiffers, InvalidArtifact, QdcError
from qdc.exporting import packable
from qdc.exporting.packing import Packing, library
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.format.weights import Weights
from qdc.ir.tensors import torch_dtype
from qdc.numerics.integergrid import shortened, zero_codes
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.natives import CONFIGURATIONS, HEADS, SIZES, write_native

ROUND = "rtn-lower{bits=%d group=32 zero=packed},pack"
TOKENS = torch.tensor([[5, 6, 7, 1, 9, 1], [3, 1, 1, 8, 2, 4]])
Export = Callable[..., Path]


class Stored(Weights):
    """One layer, held."""

    layers: dict[str, dict[str, Tensor]]

    def plain(self, name: str) -> Tensor:
        path, _, suffix = name.rpartition(".")
        return self.layers[path][suffix]

    def stored(self, layer: str) -> dict[str, Tensor]:
        return self.layers[layer]


def random_layer(codec: UniformGrid, central: bool, seed: int) -> dict[str, Tensor]:
    """Stored tensors of any codes, scales of eight bits, some of them 0."""
    generator = torch.Generator().manual_seed(seed)
    shape = (codec.rows, codec.groups)
    codes = torch.randint(0, 1 << codec.bits, (*shape, codec.group), generator=generator)
    options = zero_codes(codec.bits, "central" if central else "any")
    zero = torch.randint(options[0], options[-1] + 1, shape, generator=generator)
    scale = shortened(torch.rand(shape, generator=generator), "bf16")
    scale[0, 0], zero[1, 0] = 0, options[0]
    working = {"codes": codes.byte(), "scale": scale.half(), "zero": zero.byte()}
    return codec.pack(working)


@settings(max_examples=25)
@given(
    st.sampled_from([2, 4, 8]),
    st.booleans(),
    st.sampled_from(["bf16", "f16", "f32"]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1000),
)
def test_the_library_decompresses_what_the_codec_decodes(
    bits: int, central: bool, dtype: str, words: int, groups: int, seed: int
) -> None:
    rows = 16 * words + central  # any number of rows where there are no zero points
    codec = UniformGrid.model_validate(
        {"rows": rows, "columns": 32 * groups, "group": 32, "bits": bits, "zero": "packed"}
    )
    stored = random_layer(codec, central, seed)
    weights = Stored({"m.0": codec})
    object.__setattr__(weights, "layers", {"m.0": stored})
    symmetric = packable.is_central(weights, "m.0", codec)
    assert symmetric == central
    packed = Packing(bits, 32, symmetric, {"m.0": codec}, (), (), dtype)
    found = {k.removeprefix("m.0."): t for k, t in packed.tensors(weights, "m.0").items()}
    assert ("weight_zero_point" in found) == (not symmetric)
    assert sum(t.nbytes for t in found.values()) == packed.nbytes("m.0")
    config = library().quantization.QuantizationConfig.model_validate(packed.quantization_config())
    scheme = config.config_groups["group_0"]
    compressor = library().compressors.pack_quantized.PackedQuantizationCompressor
    assert set(found) == set(compressor.compression_param_names(scheme))
    again = compressor.decompress(found, scheme)["weight"]
    assert again.dtype == torch_dtype(dtype)
    assert torch.equal(again, codec.dense(codec.unpack(stored)).to(again.dtype))
    # And back: the library's own compressor gives the same words.
    whole = {**{k: t for k, t in found.items() if k == "weight_scale"}, "weight": again.float()}
    if symmetric and (found["weight_scale"] != 0).all() and dtype == "f32":
        packed_again = compressor.compress(whole, scheme)["weight_packed"]
        assert torch.equal(packed_again, found["weight_packed"])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two bits in groups of 32, and a vocabulary of eight bits in whole rows."""
    folder = tmp_path_factory.mktemp("packing")
    write_checkpoint(folder / "model", d_model=32, mlp_hidden_size=160, n_layers=1)
    compile_tiny(folder / "model", folder / "out", f"quantize-vocab,{ROUND % 2}")
    return folder / "out"


def export(artifact: Path, out: Path, **options: Any) -> Any:
    return qdc.export(artifact, out=out, format="compressed-tensors", **options)


def test_linears_stay_integers_and_the_rest_is_decoded(artifact: Path, tmp_path: Path) -> None:
    report = export(artifact, tmp_path / "packed", verify=True)
    written, original = Checkpoint(tmp_path / "packed"), Checkpoint(artifact.with_name("model"))
    layers = {name.removesuffix(".weight") for name in original.headers if "_proj" in name}
    layers |= {f"model.transformer.blocks.0.{name}" for name in ("attn_out", "ff_out")}
    suffixes = {name.rpartition(".")[2] for name in set(written.headers) - set(original.headers)}
    assert suffixes <= {"weight_packed", "weight_scale", "weight_shape", "weight_zero_point"}
    assert {n.removesuffix(".weight_packed") for n in written.headers if "packed" in n} == layers
    assert set(original.headers) - set(written.headers) == {f"{name}.weight" for name in layers}
    assert report.packed == len(layers) == 7
    assert report.decoded == 2
    assert "no engine serves LLaDAModelLM" in report.served_by
    assert report.dtype == "f16"  # scales of rtn-lower have eleven bits
    assert report.verification is not None
    assert report.verification.tensors == len(original.headers)
    config = written.config["quantization_config"]
    assert config["ignore"] == ["model.transformer.ff_out"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert written.config["dtype"] == "float16"
    lines = _summary(report)
    assert "  7 layers of 2 bits, groups of 32, symmetric, scales of f16: " in lines[2]
    assert lines[3:] == [
        "  2 quantized layers outside the blocks: decoded",
        f"  {report.served_by}",
    ]
    told = json.loads((tmp_path / "packed" / EXPORT).read_text(encoding="utf-8"))
    assert told == {k: v for k, v in report.as_data().items() if k != "out"}
    names = {path.name for path in (tmp_path / "packed").iterdir()}
    assert {path.name for path in original.tokenizer_files()} <= names


def native(folder: Path, kind: str, passes: str) -> Path:
    """Compile a native checkpoint whose rows are whole groups of 32."""
    write_native(folder / "model", kind)
    compile_tiny(folder / "model", folder / "out", passes)
    return folder / "out"


def loaded(folder: Path, kind: str) -> nn.Module:
    """The export in the hands of transformers, which finds the library by itself."""
    auto = HEADS.get(kind, AutoModelForCausalLM)
    model: nn.Module = auto.from_pretrained(folder, dtype="auto")
    model.train(mode=False)
    return model


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    """Native checkpoints with rows of 32 and 64."""
    sizes = {**SIZES, "intermediate_size": 64, "num_hidden_layers": 1}
    experts: dict[str, Any] = {"num_experts": 3, "num_experts_per_tok": 2}
    experts["moe_intermediate_size"] = 32
    others: Mapping[str, Callable[[], Any]] = {
        "llama": lambda: LlamaConfig(**sizes, num_key_value_heads=1),
        "qwen3-moe": lambda: Qwen3MoeConfig(**sizes, **experts, num_key_value_heads=1),
    }
    for kind, make in others.items():
        monkeypatch.setitem(CONFIGURATIONS, kind, make)
    monkeypatch.setitem(SIZES, "intermediate_size", 64)


@pytest.mark.usefixtures("wide")
@pytest.mark.parametrize(
    "kind", ["bert", "qwen3-moe", pytest.param("llama", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("dtype", ["f32", pytest.param("f16", marks=pytest.mark.slow)])
def test_transformers_gives_the_logits_of_the_artifact(
    kind: str, dtype: str, tmp_path: Path
) -> None:
    artifact = native(tmp_path, kind, ROUND % 2)
    report = export(artifact, tmp_path / "packed", dtype=dtype, verify=True)
    assert "symmetric" in report.packed_as
    model = loaded(tmp_path / "packed", kind)
    with torch.no_grad():
        found = model(input_ids=TOKENS, attention_mask=torch.ones_like(TOKENS)).logits
    expected = qdc.load(artifact, dtype=torch_dtype(dtype), backend="reference")(TOKENS)
    assert found.dtype == torch_dtype(dtype)
    torch.testing.assert_close(found, expected)


def test_sdar_keeps_its_names_and_its_routers(tmp_path: Path) -> None:
    case = next(case for case in CASES.values() if case.family == "sdar-moe")
    sizes = {"head_dim": 16, "moe_intermediate_size": 32, "num_hidden_layers": 1}
    write_family(tmp_path / "model", replace(case, config={**case.config, **sizes}))
    compile_tiny(tmp_path / "model", tmp_path / "out", ROUND % 4)
    report = export(tmp_path / "out", tmp_path / "packed", verify=True)
    assert report.served_by == "SGLang serves SDARMoeForCausalLM"
    written = Checkpoint(tmp_path / "packed")
    assert "model.layers.0.self_attn.q_proj.weight_packed" in written
    assert "model.layers.0.mlp.experts.1.down_proj.weight_packed" in written
    assert {"lm_head", "model.layers.0.mlp.gate"} <= set(
        written.config["quantization_config"]["ignore"]
    )


def refused(artifact: Path, out: Path, **options: Any) -> QdcError:
    with pytest.raises(QdcError) as caught:
        export(artifact, out, **options)
    assert not out.exists()
    return caught.value


def test_minima_are_refused_by_name(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=32, n_layers=1)
    compile_tiny(tmp_path / "model", tmp_path / "minima", "rtn-lower{group=32},pack")
    error = refused(tmp_path / "minima", tmp_path / "packed")
    assert "7 of 7 layers cannot be packed" in error.what
    assert error.where[0].startswith("model.transformer.blocks.0.q_proj: minima in fp16")
    assert "--passes engine" in error.help


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"group": 16}, "groups of 16, of 32, 64, 128"),
        ({"bits": 1}, "1 bits, of 2, 4, 8"),
        ({"columns": 80}, "80 columns are no whole groups of 32"),
        ({"zero": "float"}, "minima in fp16"),
    ],
)
def test_forms_that_no_engine_reads_are_refused(fields: dict[str, Any], reason: str) -> None:
    usual = {"rows": 16, "columns": 64, "group": 32, "bits": 2, "zero": "packed"}
    codecs = {
        "m.0.fits": UniformGrid.model_validate(usual),
        "m.0.not": UniformGrid.model_validate(usual | fields),
    }
    with pytest.raises(QdcError, match="1 of 2 layers cannot be packed") as caught:
        packable.packed_layers(codecs)
    assert caught.value.where[0].startswith(f"m.0.not: {reason}")


def test_planes_and_mixtures_are_refused() -> None:
    planes = MultiBinary(rows=16, columns=128, block=128, orders=(2,))
    with pytest.raises(QdcError, match="1 of 1 layers") as caught:
        packable.packed_layers({"m.0": planes})
    assert caught.value.where == ("m.0: codec multi-binary",)
    wide, fine = (
        UniformGrid.model_validate(
            {"rows": 16, "columns": 128, "group": group, "bits": 2, "zero": "packed"}
        )
        for group in (128, 64)
    )
    with pytest.raises(QdcError, match="2 bits in groups of 64, 2 bits in groups of 128"):
        packable.packed_layers({"m.0": wide, "m.1": fine})
    with pytest.raises(QdcError, match="nothing to pack"):
        packable.packed_layers({})


def test_scales_that_bf16_does_not_hold_are_refused(artifact: Path, tmp_path: Path) -> None:
    error = refused(artifact, tmp_path / "packed", dtype="bf16")
    assert isinstance(error, InvalidArtifact)
    assert "scales of 7 layers are no numbers of bf16" in error.what
    assert "--dtype f16" in error.help


def test_a_spoiled_word_is_found_and_nothing_is_left(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, tensors = "model.transformer.blocks.0.up_proj", Packing.tensors

    def spoiled(packing: Packing, weights: Weights, layer: str, *parts: Any) -> dict[str, Tensor]:
        found = tensors(packing, weights, layer, *parts)
        if layer == name:
            found[f"{name}.weight_packed"][3, 1] ^= 1 << 7
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Packing, "tensors", spoiled)
        with pytest.raises(ExportDiffers, match=r"1 of 12 tensors differ, 0 layers") as caught:
            export(artifact, tmp_path / "packed", verify=True)
    assert caught.value.where == (f"{name}.weight",)
    config = Packing.quantization_config
    monkeypatch.setattr(
        Packing, "quantization_config", lambda self: config(replace(self, ignored=()))
    )
    with pytest.raises(ExportDiffers, match="0 of 12 tensors differ, 1 layers"):
        export(artifact, tmp_path / "packed", verify=True)
    assert list(tmp_path.iterdir()) == []


def test_without_the_package_it_says_how_to_install_it(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    error = refused(artifact, tmp_path / "packed")
    assert "qdc-compiler[compressed-tensors]" in error.help
