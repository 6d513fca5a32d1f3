"""An artifact as an ordinary checkpoint: the same tensors, proved, whole or not there."""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import qdc
from qdc.artifact.writer import EXPORT, ArtifactWriter
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import ExportDiffers, InvalidArtifact, OutputExists, QdcError, UnknownName
from qdc.exporting import dense
from qdc.exporting.dense import export_artifact, plan_shards
from qdc.exporting.options import ExportOptions
from qdc.pipeline.registry import standard_registry
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.compiles import PLAIN, compile_tiny
from tests.support.handovers import logits

TUNED = f"quantize-vocab,{PLAIN}"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Multi-binary blocks, some of them ragged, and a quantized vocabulary."""
    folder = tmp_path_factory.mktemp("export")
    write_checkpoint(folder / "model", d_model=32, mlp_hidden_size=160)
    compile_tiny(folder / "model", folder / "out", TUNED)
    return folder / "out"


def test_it_is_a_checkpoint_like_the_original(artifact: Path, tmp_path: Path) -> None:
    out = tmp_path / "dense"
    report = qdc.export(artifact, out=out, dtype="f32", verify=True)
    original, written = Checkpoint(artifact.with_name("model")), Checkpoint(out)
    assert {n: h.shape for n, h in written.headers.items()} == {
        n: h.shape for n, h in original.headers.items()
    }
    added = {"dtype": "float32", "torch_dtype": "float32"}
    assert written.config == original.config | added
    names = {path.name for path in out.iterdir()}
    assert {path.name for path in original.tokenizer_files()} <= names
    assert report.nbytes == sum(4 * prod(h.shape) for h in written.headers.values())
    assert torch.equal(
        logits(qdc.load_original(out)), logits(qdc.load(artifact, backend="reference"))
    )
    compile_tiny(out, tmp_path / "again", "data-free")
    assert logits(qdc.load(tmp_path / "again", backend="reference")).isfinite().all()


@pytest.mark.parametrize(("short", "dtype"), [("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_weights_are_rounded_once(
    artifact: Path, tmp_path: Path, short: str, dtype: torch.dtype
) -> None:
    report = qdc.export(artifact, out=tmp_path / "dense", dtype=short, verify=True)
    exact = qdc.load(artifact, backend="reference").state_dict()
    written = Checkpoint(tmp_path / "dense")
    assert set(written.headers) == set(exact)
    for name, tensor in exact.items():
        assert torch.equal(written.tensor(name), tensor.to(dtype)), name
    assert report.verification is not None
    assert report.verification.holds
    assert [probe.name for probe in report.verification.probes] == ["random tokens", "text"]
    assert all(0 < probe.rounding < 1 for probe in report.verification.probes)
    told = json.loads((tmp_path / "dense" / EXPORT).read_text(encoding="utf-8"))
    assert told == {k: v for k, v in report.as_data().items() if k != "out"}


def test_files_hold_so_many_bytes_and_no_more_are_in_memory(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two files, as many tensors are decoded as the second one holds."""
    seen: list[str] = []
    held: list[int] = []
    rounded, shard = dense._rounded, ArtifactWriter.shard

    def note(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        seen.append(name)
        return rounded(name, tensor, dtype)

    def count(writer: ArtifactWriter, name: str, tensors: Mapping[str, Tensor]) -> None:
        held.append(len(seen) - sum(held))
        shard(writer, name, tensors)

    monkeypatch.setattr(dense, "_rounded", note)
    monkeypatch.setattr(ArtifactWriter, "shard", count)
    registry, out = standard_registry(), tmp_path / "dense"
    asked = ExportOptions(artifact=artifact, out=out, verify=True)
    report = export_artifact(asked, registry, shard_bytes=50_000)
    files = sorted(out.glob("*.safetensors"))
    assert len(files) == report.shards == len(held) > 2
    assert [len(load_file(path)) for path in files] == held
    vocabulary = 2048 * 32 * 2
    assert all(path.stat().st_size < 55_000 + vocabulary for path in files)
    assert torch.equal(
        logits(qdc.load_original(out, dtype=torch.bfloat16)),
        logits(qdc.load(artifact, dtype=torch.bfloat16, backend="reference")),
    )


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(1, 30))
def test_shards_keep_the_order_and_the_limit(sizes: list[int], limit: int) -> None:
    shapes = {f"t{number}": (size,) for number, size in enumerate(sizes)}
    parts = plan_shards(shapes, 2, limit)
    assert [name for part in parts for name in part] == list(shapes)
    for part in parts:
        nbytes = sum(2 * shapes[name][0] for name in part)
        assert part
        assert nbytes <= limit or 2 * shapes[part[0]][0] > limit >= nbytes - 2 * shapes[part[0]][0]


def test_a_wrong_tensor_is_found_and_nothing_is_left(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "model.transformer.blocks.1.ff_proj.weight"
    rounded = dense._rounded

    def spoiled(which: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
        found = rounded(which, tensor, dtype)
        if which == name:
            found[0, 0] += 1
        return found

    monkeypatch.setattr(dense, "_rounded", spoiled)
    with pytest.raises(ExportDiffers) as caught:
        qdc.export(artifact, out=tmp_path / "dense", verify=True)
    assert "1 of 21 tensors differ" in caught.value.what
    assert caught.value.where[-1] == name
    assert caught.value.where[0].startswith("logits of random tokens: up to ")
    assert list(tmp_path.iterdir()) == []


def test_wrong_logits_are_found_where_tensors_agree(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dense._config

    def turned(*given: Any) -> dict[str, Any]:
        return config(*given) | {"rope_theta": 500.0}

    monkeypatch.setattr(dense, "_config", turned)
    with pytest.raises(ExportDiffers, match="0 of 21 tensors differ") as caught:
        qdc.export(artifact, out=tmp_path / "dense", verify=True)
    assert len(caught.value.where) == 2


def test_values_that_do_not_fit_are_refused(artifact: Path, tmp_path: Path) -> None:
    copy = unsealed(artifact, tmp_path / "copy")
    name = "model.transformer.blocks.0.attn_norm.weight"
    shard = copy / "model-00001-of-00003.safetensors"
    tensors = load_file(shard)
    tensors[name][0] = 1e5
    save_file(tensors, shard)
    with pytest.raises(InvalidArtifact, match="do not fit float16") as caught:
        qdc.export(copy, out=tmp_path / "dense", dtype="f16")
    assert caught.value.where == (name,)
    assert not (tmp_path / "dense").exists()


def test_a_tokenizer_without_end_is_refused(artifact: Path, tmp_path: Path) -> None:
    copy = unsealed(artifact, tmp_path / "copy")
    settings = copy / "special_tokens_map.json"
    settings.touch()
    os.truncate(settings, 1 << 40)
    with pytest.raises(QdcError, match="it is larger than"):
        qdc.export(copy, out=tmp_path / "dense")
    assert not (tmp_path / "dense").exists()


def test_added_biases_have_no_place(artifact: Path, tmp_path: Path) -> None:
    copy = unsealed(artifact, tmp_path / "copy")
    layer = "model.transformer.blocks.0.q_proj"
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"]["added_biases"] = [layer]
    (copy / "config.json").write_text(json.dumps(config), encoding="utf-8")
    shard = copy / "model-00001-of-00003.safetensors"
    save_file({**load_file(shard), f"{layer}.bias": torch.zeros(32)}, shard)
    index = json.loads((copy / "model.safetensors.index.json").read_text(encoding="utf-8"))
    index["weight_map"][f"{layer}.bias"] = shard.name
    (copy / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    assert logits(qdc.load(copy, backend="reference")).isfinite().all()
    with pytest.raises(InvalidArtifact, match="no place") as caught:
        qdc.export(copy, out=tmp_path / "dense")
    assert caught.value.where == (layer,)


def test_force_replaces_what_qdc_has_written_and_nothing_else(
    artifact: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dense"
    qdc.export(artifact, out=out)
    with pytest.raises(OutputExists, match="is there already"):
        qdc.export(artifact, out=out)
    assert qdc.export(artifact, out=out, dtype="f32", force=True).dtype == "f32"
    assert Checkpoint(out).config["dtype"] == "float32"
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    with pytest.raises(OutputExists, match="is no qdc artifact"):
        qdc.export(artifact, out=mine, force=True)
    for place in (artifact, artifact / "dense", artifact.parent):
        with pytest.raises(OutputExists, match="lie in each other"):
            qdc.export(artifact, out=place, force=True)
    assert Checkpoint(artifact).headers


@pytest.mark.parametrize("option", ["dtype", "format"])
def test_unknown_choices_name_the_known_ones(artifact: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(UnknownName, match=f"no {option} is called 'int4'") as caught:
        qdc.export(artifact, out=tmp_path / "dense", **{option: "int4"})  # type: ignore[call-overload]
    assert caught.value.help.startswith("known: ")


def test_a_checkpoint_is_no_artifact(artifact: Path, tmp_path: Path) -> None:
    with pytest.raises(QdcError, match="plain checkpoint"):
        qdc.export(artifact.with_name("model"), out=tmp_path / "dense")
