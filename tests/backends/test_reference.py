"""The reference backend: what is in the folder, and that nothing else changed on the way."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

import qdc
from qdc.ir.dump import read
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny

BLOCK = "model.transformer.blocks"
LINEARS = ("q_proj", "k_proj", "v_proj", "attn_out", "ff_proj", "up_proj", "ff_out")


@dataclass(frozen=True)
class Compiled:
    model: Path
    out: Path
    report: CompileReport

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "config.json").read_text())
        return found

    @property
    def quantization(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["quantization_config"]
        return found

    def tensors(self) -> dict[str, Tensor]:
        shards = sorted(self.out.glob("*.safetensors"))
        return {name: t for shard in shards for name, t in load_file(shard).items()}


@pytest.fixture(scope="module", params=[torch.bfloat16, torch.float32], ids=str)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("reference")
    model = write_checkpoint(
        folder / "model", d_model=32, mlp_hidden_size=160, dtype=request.param, shards=2
    )
    return Compiled(model, folder / "out", compile_tiny(model, folder / "out"))


def test_the_folder_holds_one_shard_a_region_and_one_for_the_rest(compiled: Compiled) -> None:
    assert sorted(p.name for p in compiled.out.iterdir()) == [
        "README.md",
        "config.json",
        "ir.qdc",
        "model-00001-of-00003.safetensors",
        "model-00002-of-00003.safetensors",
        "model-00003-of-00003.safetensors",
        "model.safetensors.index.json",
        "qdc.sha256",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    for number in range(2):
        with safe_open(
            compiled.out / f"model-0000{number + 1}-of-00003.safetensors", "pt"
        ) as shard:
            assert all(name.startswith(f"{BLOCK}.{number}.") for name in shard.keys())  # noqa: SIM118


def test_the_index_names_every_tensor_once(compiled: Compiled) -> None:
    index = json.loads((compiled.out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(compiled.tensors())
    size = sum(tensor.nbytes for tensor in compiled.tensors().values())
    assert index["metadata"]["total_size"] == size == compiled.report.tensor_bytes


def test_what_is_not_quantized_is_bit_identical(compiled: Compiled) -> None:
    original = {
        name: tensor
        for shard in compiled.model.glob("*.safetensors")
        for name, tensor in load_file(shard).items()
    }
    stored = compiled.tensors()
    kept = set(original) & set(stored)
    replaced = {f"{BLOCK}.{n}.{linear}.weight" for n in range(2) for linear in LINEARS}
    assert set(original) - kept == replaced
    for name in kept:
        assert stored[name].dtype == original[name].dtype
        assert torch.equal(stored[name].view(torch.uint8), original[name].view(torch.uint8))


def test_the_configuration_keeps_the_models_own(compiled: Compiled) -> None:
    config = dict(compiled.config)
    del config["quantization_config"]
    guard = config.pop("transformers_weights")
    assert "import qdc.hf" in guard
    assert not guard.endswith(".json")
    assert not guard.endswith(".safetensors")
    assert config == json.loads((compiled.model / "config.json").read_text())


def test_the_configuration_names_layers_stages_and_what_stays(compiled: Compiled) -> None:
    found = compiled.quantization
    assert (found["quant_method"], found["format_version"]) == ("qdc", 1)
    assert found["pipeline"] == compiled.report.pipeline
    assert found["backend"] == "reference"
    assert found["calibration"]["name"] == "embedded"
    assert found["calibration"]["fields"] == ["text"]
    assert found["modules_to_not_convert"] == ["model.transformer.ff_out"]
    assert set(found["layers"]) == {f"{BLOCK}.{n}.{x}" for n in range(2) for x in LINEARS}
    assert found["stages"][:4] == [
        [f"{BLOCK}.0.{x}" for x in ("q_proj", "k_proj", "v_proj")],
        [f"{BLOCK}.0.attn_out"],
        [f"{BLOCK}.0.ff_proj", f"{BLOCK}.0.up_proj"],
        [f"{BLOCK}.0.ff_out"],
    ]
    assert found["layers"][f"{BLOCK}.0.ff_out"] == {
        "codec": "multi-binary",
        "rows": 32,
        "columns": 160,
        "block": 128,
        "orders": [2, 2],
        "scale_bits": 16,
    }


def test_layers_of_a_stage_share_block_boundaries_and_orders(compiled: Compiled) -> None:
    layers = compiled.quantization["layers"]
    for stage in compiled.quantization["stages"]:
        settings = {(layers[x]["columns"], layers[x]["block"], *layers[x]["orders"]) for x in stage}
        assert len(settings) == 1


def test_no_path_is_written(compiled: Compiled) -> None:
    for path in compiled.out.iterdir():
        assert str(compiled.model.parent).encode() not in path.read_bytes()


def test_the_tokenizer_comes_along(compiled: Compiled) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (compiled.out / name).read_bytes() == (compiled.model / name).read_bytes()


def test_the_dump_is_the_compiled_graph(compiled: Compiled) -> None:
    graph = read(compiled.out / "ir.qdc", standard_registry().annotations())
    assert graph.after == compiled.report.pipeline
    for node in graph.layers():
        tags = [note.tag for note in graph.annotations(node.name).values()]
        assert tags == ["moment", "factor", "salience", "orders", "daq", "packed"]


def test_loaded_weights_are_the_decoded_ones_and_the_others_the_originals(
    compiled: Compiled,
) -> None:
    loaded, original = (
        qdc.load(compiled.out, backend="reference"),
        qdc.load_original(compiled.model),
    )
    codecs, stored = standard_registry().codecs(), compiled.tensors()
    layers = compiled.quantization["layers"]
    for name, parameter in loaded.named_parameters():
        path = name.removesuffix(".weight")
        if path not in layers:
            assert torch.equal(parameter, original.get_parameter(name))
            continue
        fields = {key: value for key, value in layers[path].items() if key != "codec"}
        codec = codecs[layers[path]["codec"]].model_validate(fields)
        parts = {suffix: stored[f"{path}.{suffix}"] for suffix in codec.specification()}
        assert torch.equal(parameter, codec.dense(codec.unpack(parts)))
        assert not torch.equal(parameter, original.get_parameter(name))


def test_bytes_of_the_report_are_those_on_disk(compiled: Compiled) -> None:
    report = compiled.report
    assert report.bytes_after == sum(p.stat().st_size for p in compiled.out.iterdir())
    assert report.bytes_before == sum(
        p.stat().st_size for p in compiled.model.glob("*.safetensors")
    )
    stored = compiled.tensors()
    for layer in report.layers:
        path = f"model.transformer.{layer.name}."
        mine = [t.nbytes for n, t in stored.items() if n.startswith(path) and "weight" not in n]
        assert sum(mine) == layer.nbytes
    assert report.sign_bits == 2
    assert report.effective_bits > 2


def test_shards_are_as_large_as_their_headers_and_the_prediction(compiled: Compiled) -> None:
    predicted = {layer.name: layer.nbytes for layer in compiled.report.layers}
    for shard in compiled.out.glob("*.safetensors"):
        data = shard.read_bytes()
        header = 8 + int.from_bytes(data[:8], "little")
        names = [name for name in json.loads(data[8:header]) if name != "__metadata__"]
        kept = [n for n in names if n.endswith(".weight")]
        layers = {n.rpartition(".")[0].removeprefix("model.transformer.") for n in names} - {
            n.removesuffix(".weight").removeprefix("model.transformer.") for n in kept
        }
        original = sum(load_file(shard)[name].nbytes for name in kept)
        assert len(data) == header + original + sum(predicted[name] for name in layers)
