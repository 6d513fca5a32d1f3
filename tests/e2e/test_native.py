"""Models of transformers from checkpoint to artifact and back, without code of our own."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qdc
from qdc.artifact.config import parse_codec, parse_quantization
from qdc.checkpoint.folder import Checkpoint
from qdc.cli import run
from qdc.cli.models import open_runnable
from qdc.errors import InvalidArtifact, QdcError, UnsupportedModel
from qdc.pipeline.registry import standard_registry
from qdc.report.model import CompileReport
from tests.support.artifacts import unsealed
from tests.support.natives import CONFIGURATIONS, bidirectional, rewrite, write_native
from tests.support.running import assert_packed_alike

CROSS = "quantize-vocab,stages(calibrate-cross,sensitivity,abmp-allocate,daq-lower{sweeps=2}),pack"
ROUNDED = "rtn-lower{bits=4},pack"
Compiled = tuple[str, Path, Path, CompileReport]


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    kind: str = request.param
    model = write_native(tmp_path_factory.mktemp(kind) / "model", kind)
    out = model.with_name("out")
    report = qdc.compile(model, CROSS, out=out, samples=4, length=16, write_report=False)
    return kind, model, out, report


def decoded(folder: Path) -> dict[str, Tensor]:
    """Every dense weight of an artifact, from its shards and codecs alone."""
    source = Checkpoint(folder)
    layers = parse_quantization(source.config).layers
    known = standard_registry().codecs()
    tensors = {name: source.tensor(name) for name in source.headers}
    for layer, fields in layers.items():
        codec = parse_codec(layer, fields, known)
        stored = {s: tensors.pop(f"{layer}.{s}") for s in codec.specification()}
        tensors[f"{layer}.weight"] = codec.dense(codec.unpack(stored))
    return tensors


def tokens(*shape: int) -> Tensor:
    return torch.randint(2, 2048, shape, generator=torch.Generator().manual_seed(1))


def test_reloads_as_the_native_class_with_the_decoded_weights(
    compiled: Compiled, tmp_path: Path
) -> None:
    """With and without padding, against a checkpoint of the decoded weights in transformers."""
    kind, model, out, _ = compiled
    dense = decoded(out)
    native = bidirectional(rewrite(model, tmp_path / "dense", lambda tensors: dense), kind)
    ids, mask = tokens(3, 11), torch.ones(3, 11, dtype=torch.int64)
    mask[1, 7:] = 0
    module = qdc.load(out, backend="reference")
    for given in (None, mask):
        with torch.no_grad():
            expected = native(input_ids=ids, attention_mask=given).logits
            found = module(ids, given)
        seen = torch.ones_like(ids) if given is None else given
        difference = (found - expected)[seen.bool()].abs().max()
        assert float(difference) <= 1e-5 * float(expected.abs().max())
    assert_packed_alike(out, lambda model: model(ids, mask)[mask.bool()])


def test_quantizes_every_linear_of_the_blocks_to_two_bits(compiled: Compiled) -> None:
    kind, model, out, report = compiled
    names = set(load_file(model / "model.safetensors"))
    blocks = {
        name
        for name in names
        if ".layer" in name and name.endswith(".weight") and "orm" not in name
    }
    routers = {name for name in blocks if name.endswith("mlp.gate.weight")}
    quantized = {row.tensor for row in report.coverage if row.status == "quantized"}
    inside = {f"{layer}.weight" for layer in parse_quantization(Checkpoint(out).config).layers}
    assert blocks - routers == {name for name in quantized if ".layer" in name}
    assert inside == quantized
    assert {row.tensor for row in report.coverage} == names
    assert report.sign_bits == 2
    assert bool(routers) == (kind == "qwen3-moe")


def test_loads_the_original_too(compiled: Compiled) -> None:
    kind, model, _, _ = compiled
    ids = tokens(2, 9)
    with torch.no_grad():
        expected = bidirectional(model, kind)(input_ids=ids).logits
        assert float((qdc.load_original(model)(ids) - expected).abs().max()) < 1e-4


def test_the_artifact_names_its_front_end(compiled: Compiled, tmp_path: Path) -> None:
    kind, _, out, _ = compiled
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert config["quantization_config"]["frontend"] == "export"
    if kind != "bert":
        return
    copy = unsealed(out, tmp_path / "copy")
    for name, error in (("fx", UnsupportedModel), ("jit", InvalidArtifact)):
        config["quantization_config"]["frontend"] = name
        (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(error):
            qdc.load(copy, backend="reference")


def test_an_encoder_without_head_gives_hidden_states(tmp_path: Path) -> None:
    model, out = write_native(tmp_path / "model", "bert", head=False), tmp_path / "out"
    report = qdc.compile(model, ROUNDED, out=out, write_report=False)
    left_out = {row.tensor for row in report.coverage if row.status == "left out"}
    assert left_out == {"pooler.dense.weight", "pooler.dense.bias"}
    ids = tokens(2, 9)
    found = qdc.load(out, backend="reference")(ids)
    with torch.no_grad():
        expected = bidirectional(model, "bert", head=False)(input_ids=ids).last_hidden_state
    assert found.shape == expected.shape
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=-1).min()) > 0.9
    with pytest.raises(QdcError, match="the model has no output head"):
        open_runnable(out, "cpu", [])


def test_the_command_line_chooses_the_front_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = write_native(tmp_path / "model", "bert"), tmp_path / "out"
    with pytest.raises(UnsupportedModel, match="implements BertForMaskedLM"):
        qdc.compile(model, ROUNDED, out=out, frontend="fx")
    chosen = ["--passes", ROUNDED, "--frontend", "export", "--no-report", "--json"]
    assert run(["compile", str(model), "-o", str(out), *chosen]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "bert"
    opened = open_runnable(out, "cpu", [])
    assert opened.facts.mask_token_id == 1
    assert opened(tokens(1, 5)).shape == (1, 5, 2048)


def test_own_and_native_class_give_one_artifact(tmp_path: Path) -> None:
    """Dream's layout is that of Qwen2: both front ends quantize the same weights to the same."""
    fields: dict[str, Any] = {"architectures": ["DreamModel"], "model_type": "Dream"}
    source = write_native(tmp_path / "model", "qwen2")
    untied = rewrite(source, tmp_path / "native", with_head, tie_word_embeddings=False)
    own = rewrite(untied, tmp_path / "own", **fields)
    passes = "stages(calibrate-mcs,rtn-lower{bits=4}),pack"
    options: dict[str, Any] = {"samples": 4, "length": 16, "states": "f32", "write_report": False}
    for folder, name in ((untied, "export"), (own, "fx")):
        qdc.compile(folder, passes, out=tmp_path / name, frontend=name, **options)
    one, two = decoded(tmp_path / "export"), decoded(tmp_path / "fx")
    assert set(one) == set(two)
    for name, tensor in one.items():
        assert torch.allclose(tensor, two[name], atol=1e-5), name


def with_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}


def test_an_unknown_front_end_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(QdcError, match="no front end is called 'jit'"):
        qdc.compile(tmp_path / "nothing", ROUNDED, out=tmp_path / "out", frontend="jit")


@pytest.mark.skipif("QDC_ENCODER" not in os.environ, reason="QDC_ENCODER names no encoder's folder")
def test_a_pretrained_encoder_compiles_and_stays_itself(tmp_path: Path) -> None:
    """Any encoder that transformers implements, as ``bench/pretrained.py`` measures it."""
    model, out = Path(os.environ["QDC_ENCODER"]), tmp_path / "out"
    report = qdc.compile(model, "rtn-lower{bits=8},pack", out=out, write_report=False)
    assert {row.tensor for row in report.coverage} == set(Checkpoint(model).headers)
    ids = tokens(2, 16) % 1000
    with torch.no_grad():
        found, expected = qdc.load(out, backend="reference")(ids), qdc.load_original(model)(ids)
    assert float(torch.nn.functional.cosine_similarity(found, expected, dim=-1).min()) > 0.98
