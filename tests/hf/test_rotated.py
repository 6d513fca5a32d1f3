"""Artifacts whose layers rotate what they read, through transformers."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM

import qdc
import qdc.hf
from qdc.errors import QdcError
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family
from tests.support.handovers import logits, native_artifact

PASSES = "quantize-vocab,stages(rotate,rtn-lower{bits=4}),pack"


def test_a_model_of_qdc_rotates_saves_and_becomes_dense(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", CASES["dream"])
    compile_tiny(model, tmp_path / "out", PASSES)
    expected = logits(qdc.load(tmp_path / "out", backend="reference"))
    loaded = AutoModel.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(logits(loaded), expected)
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(AutoModel.from_pretrained(tmp_path / "saved")), expected)
    prompt = torch.tensor([[5, 6]])
    assert loaded.generate(prompt, max_new_tokens=4, steps=2).shape == (1, 6)
    dense = loaded.dequantize()
    torch.testing.assert_close(logits(dense), expected, rtol=1e-4, atol=1e-4)
    dense.save_pretrained(tmp_path / "dense")
    torch.testing.assert_close(
        logits(qdc.load_original(tmp_path / "dense")), expected, rtol=1e-4, atol=1e-4
    )


def test_a_class_of_transformers_rotates_too(tmp_path: Path) -> None:
    out = native_artifact(tmp_path, "bert", PASSES)
    expected = logits(qdc.load(out, backend="reference"))
    model = AutoModelForMaskedLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    base = AutoModel.from_pretrained(out, dtype=torch.float32)
    turned = [part for part in base.modules() if type(part).__name__ == "PackedLinear"]
    assert any(getattr(part, "seed", None) is not None for part in turned)


def test_codes_of_inputs_stay_refused(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", CASES["dream"])
    compile_tiny(model, tmp_path / "out", "rotate,quantize-activations,rtn-lower{bits=8},pack")
    with pytest.raises(QdcError) as caught:
        AutoModel.from_pretrained(tmp_path / "out")
    assert caught.value.what.endswith("linears of the artifact quantize what they read")
