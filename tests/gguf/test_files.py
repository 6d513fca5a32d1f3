"""GGUF files: names, keys, vocabulary, what is copied and decoded, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import qdc
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import OutputExists, QdcError, UnsupportedModel
from qdc.gguf.names import Place, naming
from qdc.gguf.vocabulary import read_vocabulary
from qdc.models.families import BUILT_IN
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.ggufs import needs_gguf, write_plain

pytestmark = needs_gguf
SHORT = "gguf-vocab,stages(calibrate-mcs,sensitivity,gguf-lower{rounds=0}),pack"


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys and tensors of a file."""
    from gguf import GGUFReader

    reader = GGUFReader(str(path))
    keys = {name: field.contents() for name, field in reader.fields.items()}
    return keys, {tensor.name: tensor for tensor in reader.tensors}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "model"
    return write_checkpoint(folder, d_model=256, mlp_hidden_size=256, n_layers=1, vocab=2048)


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    compile_tiny(model, model.with_name("out"), SHORT)
    return model.with_name("out")


@pytest.fixture(scope="module")
def exported(artifact: Path) -> Path:
    path = artifact.with_name("exported.gguf")
    report = qdc.export(artifact, out=path, format="gguf", verify=True)
    assert report.decoded == 0
    assert report.verification is not None
    assert report.nbytes <= path.stat().st_size
    return path


def test_keys_say_what_the_model_computes(exported: Path) -> None:
    keys, _ = read(exported)
    expected = {
        "general.architecture": "llada",
        "general.file_type": 10,
        "llada.block_count": 1,
        "llada.embedding_length": 256,
        "llada.feed_forward_length": 256,
        "llada.attention.head_count": 2,
        "llada.attention.head_count_kv": 2,
        "llada.rope.dimension_count": 128,
        "llada.attention.causal": False,
        "diffusion.shift_logits": False,
        "tokenizer.ggml.mask_token_id": 1,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
    }
    assert {name: keys[name] for name in expected} == expected
    assert len(keys["tokenizer.ggml.tokens"]) == 2048
    assert keys["tokenizer.ggml.token_type"][:3] == [3, 3, 1]


def test_blocks_are_those_of_the_artifact(artifact: Path, exported: Path) -> None:
    _, tensors = read(exported)
    stored = Checkpoint(artifact)
    blocks = stored.tensor("model.transformer.blocks.0.ff_out.blocks")
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "Q3_K"
    assert np.array_equal(tensors["blk.0.ffn_down.weight"].data, blocks.numpy())
    rows = stored.tensor("model.transformer.blocks.0.q_proj.blocks")
    halves = torch.stack([torch.arange(64), torch.arange(64) + 64], 1).flatten()
    order = torch.cat([halves, halves + 128])
    assert np.array_equal(tensors["blk.0.attn_q.weight"].data, rows[order].numpy())
    assert tensors["token_embd.weight"].tensor_type.name == "Q6_K"
    assert tensors["output_norm.weight"].tensor_type.name == "F32"


def test_a_compile_writes_the_same_file(model: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported.gguf"
    report = compile_tiny(model, out, SHORT, backend="gguf")
    assert out.read_bytes() == exported.read_bytes()
    assert report.bytes_after == out.stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == [out.name]
    with pytest.raises(OutputExists, match="there already"):
        compile_tiny(model, out, SHORT, backend="gguf")
    compile_tiny(model, out, SHORT, backend="gguf", force=True)
    out.write_bytes(b"something else")
    with pytest.raises(OutputExists, match=r"no \.gguf file"):
        compile_tiny(model, out, SHORT, backend="gguf", force=True)
    assert out.read_bytes() == b"something else"


@pytest.mark.parametrize(("dtype", "kind"), [(None, "F16"), ("q8_0", "Q8_0")])
def test_other_codecs_are_decoded(
    model: Path, tmp_path: Path, dtype: str | None, kind: str
) -> None:
    compile_tiny(model, tmp_path / "out", "data-free")
    report = qdc.export(
        tmp_path / "out", out=tmp_path / "a.gguf", format="gguf", dtype=dtype, verify=True
    )
    _, tensors = read(tmp_path / "a.gguf")
    assert report.decoded == 7
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == kind
    with pytest.raises(QdcError, match="no dtype"):
        qdc.export(tmp_path / "out", out=tmp_path / "b.gguf", format="gguf", dtype="bf16")


def test_decoded_layers_are_said_aloud(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = compile_tiny(model, tmp_path / "a.gguf", "data-free", backend="gguf{dense=Q8_0}")
    assert "as packed: of 7 matrices the file holds weights in full" in str(found)
    assert (
        "7 layers are stored as no block of ggml and stand decoded in the file, as Q8_0"
        in caplog.text
    )
    assert "rotations" not in caplog.text
    compile_tiny(model, tmp_path / "b.gguf", "rotate,data-free", backend="gguf")
    assert "multiplied out of 7 of them" in caplog.text


def test_experts_of_a_block_are_one_tensor(tmp_path: Path) -> None:
    case = next(case for case in CASES.values() if case.family == "llada-moe")
    write_family(tmp_path / "moe", case)
    write_plain(tmp_path / "moe", tmp_path / "moe.gguf")
    keys, tensors = read(tmp_path / "moe.gguf")
    count = keys["llada-moe.expert_count"]
    gates = tensors["blk.0.ffn_gate_exps.weight"].data
    assert len(gates) == count
    last = Checkpoint(tmp_path / "moe").tensor(
        f"model.layers.0.mlp.experts.{count - 1}.gate_proj.weight"
    )
    assert np.array_equal(gates[-1], last.half().numpy())
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type.name == "F32"


def test_dream_shifts_and_has_biases(tmp_path: Path) -> None:
    case = next(case for case in CASES.values() if case.family == "dream")
    write_family(tmp_path / "dream", case)
    write_plain(tmp_path / "dream", tmp_path / "dream.gguf")
    keys, tensors = read(tmp_path / "dream.gguf")
    assert keys["diffusion.shift_logits"] is True
    assert "blk.0.attn_q.bias" in tensors
    query = Checkpoint(tmp_path / "dream").tensor("model.layers.0.self_attn.q_proj.weight")
    assert np.array_equal(tensors["blk.0.attn_q.weight"].data, query.half().numpy())


def test_other_families_are_refused_before_anything_runs(tmp_path: Path) -> None:
    case = next(case for case in CASES.values() if case.family == "sdar")
    write_family(tmp_path / "sdar", case)
    with pytest.raises(UnsupportedModel, match="no graph for models of the family sdar"):
        compile_tiny(tmp_path / "sdar", tmp_path / "a.gguf", "data-free", backend="gguf")
    assert not (tmp_path / "a.gguf").exists()


def test_a_tokenizer_that_llamacpp_does_not_know_is_refused(model: Path, tmp_path: Path) -> None:
    for path in model.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    described = json.loads((tmp_path / "tokenizer.json").read_text())
    split = {
        "type": "Split",
        "pattern": {"Regex": "[a-c]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    described["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [split, described["pre_tokenizer"] | {"use_regex": False}],
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(described))
    known = naming(Checkpoint(tmp_path).config, BUILT_IN)
    with pytest.raises(UnsupportedModel, match="no name for the way"):
        read_vocabulary(tmp_path, known)
    assert read_vocabulary(tmp_path, known, "qwen2").pre == "qwen2"


def test_rotated_rows_are_neighbours() -> None:
    rows = torch.arange(8)
    assert Place("attn_q", heads=2).reordered(rows).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]
    assert Place("attn_v").reordered(rows) is rows
