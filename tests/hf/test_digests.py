"""Digests and links of artifacts that transformers loads and saves."""

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

import qdc
import qdc.hf
from qdc.artifact.digests import DIGESTS, Digests
from qdc.errors import InvalidArtifact, QdcError
from tests.support.artifacts import unsealed
from tests.support.handovers import logits

SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def copy(encoder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(encoder, tmp_path / "copy"))


@pytest.fixture
def unverified() -> Iterator[None]:
    qdc.hf.verify_files(False)
    yield
    qdc.hf.verify_files()


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_flipped_bit_is_refused(copy: Path) -> None:
    flip(copy / SHARD)
    with pytest.raises(
        InvalidArtifact, match="a file is not as the artifact was written"
    ) as caught:
        AutoModelForMaskedLM.from_pretrained(copy)
    assert caught.value.where == (SHARD,)


def test_it_is_taken_if_nobody_wants_to_know(copy: Path, unverified: None) -> None:
    flip(copy / SHARD)
    assert AutoModelForMaskedLM.from_pretrained(copy)


def test_a_changed_configuration_is_refused(copy: Path) -> None:
    text = (copy / "config.json").read_text(encoding="utf-8")
    (copy / "config.json").write_text(text.replace('"layer_norm_eps": ', '"layer_norm_eps": 1'))
    assert text != (copy / "config.json").read_text(encoding="utf-8")
    with pytest.raises(InvalidArtifact, match="a file is not as") as caught:
        AutoModelForMaskedLM.from_pretrained(copy)
    assert caught.value.where == ("config.json",)


def test_an_artifact_of_before_is_taken_with_a_note(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = unsealed(encoder, tmp_path / "older")
    with caplog.at_level(logging.WARNING, "qdc"):
        AutoModelForMaskedLM.from_pretrained(older)
    assert [each for each in caplog.messages if "has no digests" in each]


@pytest.mark.parametrize("shard", ["5GB", "20KB"])
def test_what_is_saved_has_digests_of_its_own(shard: str, encoder: Path, copy: Path) -> None:
    """Over an artifact that had others, which are gone."""
    before = Digests.of(copy).listed
    model = AutoModelForMaskedLM.from_pretrained(encoder)
    model.save_pretrained(copy, max_shard_size=shard)
    listed = Digests.of(copy).listed or {}
    assert listed != before
    assert "config.json" in listed
    assert any(name.endswith(".safetensors") for name in listed)
    for name, sha256 in listed.items():
        assert hashlib.sha256((copy / name).read_bytes()).hexdigest() == sha256
    assert torch.equal(logits(AutoModelForMaskedLM.from_pretrained(copy)), logits(model))
    assert torch.equal(
        logits(qdc.load(copy, dtype=model.dtype, backend="reference")), logits(model)
    )


def test_a_dense_model_leaves_no_digests_of_an_artifact(encoder: Path, copy: Path) -> None:
    model = AutoModelForMaskedLM.from_pretrained(encoder).dequantize()
    model.save_pretrained(copy)
    assert not (copy / DIGESTS).exists()
    assert AutoModelForMaskedLM.from_pretrained(copy)


def test_dense_tensors_are_finite(encoder: Path, tmp_path: Path) -> None:
    hostile = unsealed(encoder, tmp_path / "hostile")
    tensors = load_file(hostile / SHARD)
    name = next(name for name in tensors if name.endswith("LayerNorm.weight"))
    tensors[name][0] = torch.nan
    save_file(tensors, hostile / SHARD, metadata={"format": "pt"})
    with pytest.raises(QdcError, match="1 tensor holds NaN or infinity") as caught:
        AutoModelForMaskedLM.from_pretrained(hostile)
    assert caught.value.where == (name,)


@pytest.mark.parametrize("name", ["generation_config.json", SHARD])
def test_links_out_of_the_folder_are_refused(name: str, copy: Path, tmp_path: Path) -> None:
    """transformers would write again what the first says."""
    secret = tmp_path / "secret.json"
    secret.write_bytes((copy / name).read_bytes() if name == SHARD else b'{"auths": "secret"}')
    (copy / name).unlink(missing_ok=True)
    (copy / name).symlink_to(secret)
    with pytest.raises(InvalidArtifact, match="a link to a file outside the model's folder"):
        AutoModelForMaskedLM.from_pretrained(copy)
