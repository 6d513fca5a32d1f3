"""Families of qdc's own through transformers: under their published names, from their own files."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

import qdc
import qdc.hf
from qdc.checkpoint.layout import INDEX, SINGLE
from qdc.errors import QdcError, UnsupportedModel
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, TABLES, write_family
from tests.support.handovers import PACKED, batch, logits

OF_TRANSFORMERS = ("stable-diffcoder",)
"""Families whose ``model_type`` is one that transformers implements otherwise."""
OFFERED = [name for name in CASES if name not in OF_TRANSFORMERS]
PUBLISHED = {"fast-dllm": "Fast_dLLM_Qwen"}
"""Model types that the cases leave out."""
TIED = "rtn-lower{bits=4},pack"
"""Embedding and head as they are."""


def write_case(folder: Path, name: str) -> Path:
    """A checkpoint with the published model type, and code that would have to be fetched."""
    case = CASES[name]
    model = write_family(folder, case)
    path = model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.setdefault("model_type", PUBLISHED.get(case.family))
    config["auto_map"] = {"AutoConfig": "code.Config", "AutoModel": "code.Model"}
    path.write_text(json.dumps(config), encoding="utf-8")
    return model


@pytest.mark.parametrize(
    ("name", "passes"), [*((name, PACKED) for name in OFFERED), ("fast-dllm tied", TIED)]
)
def test_loads_saves_and_gives_the_logits_of_qdc(name: str, passes: str, tmp_path: Path) -> None:
    compile_tiny(write_case(tmp_path / "model", name), tmp_path / "out", passes)
    original = qdc.load(tmp_path / "out", backend="reference")
    expected = logits(original)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert type(model).__name__ in CASES[name].config["architectures"]
    assert getattr(original, "logits_shift", 0) == model.logits_shift
    assert torch.equal(logits(model), expected)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "saved")), expected)
    assert torch.equal(logits(qdc.load(tmp_path / "saved", backend="reference")), expected)
    dense = model.dequantize()  # type: ignore[no-untyped-call]
    assert torch.equal(logits(dense), expected)


def test_a_model_saved_over_itself_loads(tmp_path: Path) -> None:
    """One file over shards, shards over one file, each again, and dense weights over either."""
    folder = tmp_path / "out"
    compile_tiny(write_case(tmp_path / "model", "llada"), folder, PACKED)
    expected = logits(qdc.load(folder, backend="reference"))
    for size, other, sharded in (("1GB", "100KB", False), ("100KB", "1GB", True)):
        for _ in range(2):
            AutoModel.from_pretrained(folder, dtype=torch.float32).save_pretrained(
                folder, max_shard_size=size
            )
            assert (folder / INDEX).is_file() == sharded
            assert (folder / SINGLE).is_file() != sharded
            assert torch.equal(logits(qdc.load(folder, backend="reference")), expected)
        dense = tmp_path / size
        shutil.copytree(folder, dense)
        model = AutoModel.from_pretrained(dense, dtype=torch.float32).dequantize()
        model.save_pretrained(dense, max_shard_size=other)
        assert (dense / INDEX).is_file() != sharded
        assert (dense / SINGLE).is_file() == sharded
        assert torch.equal(logits(qdc.load_original(dense)), expected)
        assert torch.equal(logits(AutoModel.from_pretrained(dense)), expected)


@pytest.mark.parametrize("name", OFFERED)
def test_a_dense_export_is_proved(name: str, tmp_path: Path) -> None:
    compile_tiny(write_case(tmp_path / "model", name), tmp_path / "out", PACKED)
    report = qdc.export(tmp_path / "out", out=tmp_path / "dense", dtype="f32", verify=True)
    assert report.verification is not None
    assert {probe.rounding for probe in report.verification.probes} == {0.0}
    expected = logits(qdc.load(tmp_path / "out", backend="reference"))
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "dense")), expected)


def test_a_checkpoint_that_is_not_compiled_loads_too(tmp_path: Path) -> None:
    folder = write_case(tmp_path / "model", "llada")
    expected = logits(qdc.load_original(folder))
    for auto in (AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM):
        assert torch.equal(logits(auto.from_pretrained(folder, dtype=torch.float32)), expected)
    config = AutoConfig.from_pretrained(folder)
    fresh = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    assert logits(fresh).isfinite().all()


def test_arguments_that_would_change_the_result_are_refused(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(write_case(tmp_path / "model", "llada"))
    ids = batch()["input_ids"]
    zeros = torch.zeros_like(ids)
    given = model(**batch(), token_type_ids=zeros, use_cache=False, labels=None, return_dict=False)
    assert torch.equal(given[0], model(**batch()).logits)
    for argument in ({"labels": ids}, {"use_cache": True}, {"token_type_ids": zeros + 1}):
        with pytest.raises(TypeError, match=f"does not take {next(iter(argument))}"):
            model(ids, **argument)


def test_masks_are_taken_for_what_they_say_or_refused(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(write_case(tmp_path / "model", "dream"))
    ids, mask = batch()["input_ids"], batch()["attention_mask"]
    expected = model(ids, mask).logits
    seen = mask.bool()[:, None, None, :].expand(2, 1, 9, 9)
    added = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    for form in (seen, added):
        assert torch.equal(model(ids, form).logits, expected)
    assert torch.equal(model(ids, "full").logits, model(ids).logits)
    with pytest.raises(QdcError, match="need 1 for tokens and 0 for padding"):
        model(ids, added[:, 0, 0])


def test_a_text_longer_than_the_model_is_refused(tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(write_case(tmp_path / "model", "llada"))
    longest = model.facts.max_length
    assert model(torch.full((1, longest), 5)).logits.isfinite().all()
    with pytest.raises(QdcError, match=f"{longest + 1} tokens, and the model takes {longest}"):
        model(torch.full((1, longest + 1), 5))


def test_every_family_has_a_published_model_type() -> None:
    without = [family.name for family in TABLES if not family.model_type]
    assert without == list(OF_TRANSFORMERS)


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_a_class_of_transformers_does_not_stand_in(name: str, tmp_path: Path) -> None:
    """Its tensors have the same names, and it would look back only."""
    compile_tiny(write_case(tmp_path / "model", name), tmp_path / "out", PACKED)
    with pytest.raises(QdcError, match="with its own LlamaForCausalLM, which computes something"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_the_registered_classes_are_none_of_transformers(tmp_path: Path) -> None:
    """The export front end still takes the classes of transformers alone."""
    folder = write_case(tmp_path / "model", "llada")
    with pytest.raises(UnsupportedModel, match="no model family here implements LLaDAModelLM"):
        qdc.load_original(folder, frontend="export")
