"""Artifacts are untrusted: transformers loads what is whole, and nothing else."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

import qdc
import qdc.hf
from qdc.errors import InvalidArtifact, QdcError
from qdc.hf import settings
from tests.e2e.test_plugin_quantizer import SOURCE
from tests.support.artifacts import unsealed
from tests.support.checkpoints import write_checkpoint
from tests.support.handovers import logits

LAYER = "bert.encoder.layer.0.attention.self.query"
WORDS = "bert.embeddings.word_embeddings"
SHARD = "model-00001-of-00003.safetensors"
Tensors = dict[str, Tensor]
Fields = dict[str, Any]


@pytest.fixture
def copy(encoder: Path, tmp_path: Path) -> Path:
    return unsealed(encoder, tmp_path / "copy")


def refusal(folder: Path, auto: Any = AutoModelForMaskedLM) -> str:
    with pytest.raises(InvalidArtifact) as caught:
        auto.from_pretrained(folder)
    return str(caught.value)


def edit_config(folder: Path, edit: Callable[[Fields], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    edit(config["quantization_config"])
    path.write_text(json.dumps(config), encoding="utf-8")


def drop_codes(tensors: Tensors) -> None:
    del tensors[f"{LAYER}.codes"]


def drop_norm(tensors: Tensors) -> None:
    del tensors["bert.encoder.layer.0.output.LayerNorm.weight"]


def add_tensor(tensors: Tensors) -> None:
    tensors["bert.more"] = torch.zeros(1)


def widen_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.scale"] = tensors[f"{LAYER}.scale"].float()


def cut_codes(tensors: Tensors) -> None:
    tensors[f"{LAYER}.codes"] = tensors[f"{LAYER}.codes"][:1].clone()


def spoil_scale(tensors: Tensors) -> None:
    tensors[f"{LAYER}.scale"][0] = torch.nan


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (drop_codes, f"1 tensors are missing, 0 have no place in the model\n  at    {LAYER}.codes"),
        (drop_norm, "1 tensors are missing"),
        (add_tensor, "0 tensors are missing, 1 have no place in the model\n  at    bert.more"),
        (widen_scale, f"the wrong dtype or shape\n  at    {LAYER}.scale: f32"),
        (cut_codes, f"the wrong dtype or shape\n  at    {LAYER}.codes: u8[1,"),
        (spoil_scale, f"scale holds NaN or infinity\n  at    {LAYER}"),
    ],
)
def test_tensors_are_those_of_the_model(
    copy: Path, edit: Callable[[Tensors], None], what: str
) -> None:
    names = json.loads((copy / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = copy / names["weight_map"][f"{LAYER}.codes"]
    tensors = load_file(shard)
    edit(tensors)
    save_file(tensors, shard)
    assert what in refusal(copy)


def test_a_file_that_is_cut_short_is_named(copy: Path) -> None:
    shard = copy / SHARD
    shard.write_bytes(shard.read_bytes()[:-9])
    assert f"cut short\n  at    {shard}" in refusal(copy)


def test_files_outside_the_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    index = copy / "model.safetensors.index.json"
    shutil.move(copy / SHARD, tmp_path / SHARD)
    index.write_text(index.read_text(encoding="utf-8").replace(SHARD, f"../{SHARD}"))
    assert "names files outside its folder" in refusal(copy)


def test_what_linears_do_with_their_inputs_is_not_left_out(copy: Path) -> None:
    coded = {LAYER: {"input": {"bits": 8}}}
    edit_config(copy, lambda q: q.update(format_version=2, activations=coded))
    with pytest.raises(QdcError, match="do not follow"):
        AutoModelForMaskedLM.from_pretrained(copy)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (lambda q: q.update(format_version=3), "format version 3"),
        (
            lambda q: q.update(format_version=2, activations={WORDS: {"rotation": 1}}),
            "a rotation is named of what cannot be rotated",
        ),
        (lambda q: q.update(layers=[]), "not one of qdc"),
        (lambda q: q["layers"][LAYER].update(codec="other"), "no codec is called 'other'"),
        (lambda q: q["layers"][LAYER].update(bits=3), "the codec's settings are wrong: bits"),
        (lambda q: q["layers"][LAYER].update(rows=31), "the model has no 31 x 32 weight there"),
        (lambda q: q["layers"].update({"bert.gone": q["layers"][LAYER]}), "no layer there"),
        (
            lambda q: q["layers"].update({"bert.encoder": q["layers"][LAYER]}),
            "no linear or embedding there",
        ),
        (lambda q: q.update(added_biases=[LAYER]), "added_biases names no linear"),
        (lambda q: q["layers"].pop(LAYER), "1 tensors are missing, 3 have no place"),
    ],
)
def test_the_configuration_is_checked(
    copy: Path, edit: Callable[[Fields], object], what: str
) -> None:
    edit_config(copy, edit)
    assert what in refusal(copy)


def test_fields_are_never_taken_for_attributes(copy: Path) -> None:
    edit_config(
        copy, lambda q: q.update(self=1, to_dict=2, dequantize=True, return_unused_kwargs=1)
    )
    model = AutoModelForMaskedLM.from_pretrained(copy, dtype=torch.float32)
    assert torch.equal(logits(model), logits(qdc.load(copy, backend="reference")))
    assert model.config.to_dict()["quantization_config"]["to_dict"] == 2


def test_another_class_is_refused(encoder: Path) -> None:
    text = refusal(encoder, AutoModelForSequenceClassification)
    assert "is of BertForMaskedLM, not of BertForSequenceClassification" in text


def test_a_state_dict_is_refused(encoder: Path) -> None:
    kind = type(AutoModelForMaskedLM.from_pretrained(encoder))
    config = kind.config_class.from_pretrained(encoder)
    with pytest.raises(QdcError, match="loaded from its own files"):
        kind.from_pretrained(None, config=config, state_dict={})


def test_codecs_of_plugins_have_to_be_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "_plugins", [])
    plugin = tmp_path / "sign_lower.py"
    plugin.write_text(SOURCE, encoding="utf-8")
    model = write_checkpoint(tmp_path / "model", d_model=32, mlp_hidden_size=32)
    out = tmp_path / "out"
    qdc.compile(model, "sign-lower,pack", out=out, plugins=plugin, write_report=False)
    assert "no codec is called 'row-signs'" in refusal(out, AutoModel)
    with pytest.raises(QdcError, match="no such plugin file"):
        qdc.hf.use_plugins(tmp_path / "gone.py")
    qdc.hf.use_plugins(plugin)
    found = AutoModel.from_pretrained(out, dtype=torch.float32)
    assert torch.equal(logits(found), logits(qdc.load(out, plugins=plugin, backend="reference")))
