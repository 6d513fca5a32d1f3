"""Artifacts of classes that transformers implements, loaded by transformers itself."""

import copy
import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedModel

import qdc
import qdc.hf
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import QdcError
from tests.hf.conftest import Artifacts
from tests.support.artifacts import unsealed
from tests.support.handovers import BINARY, PACKED, auto_class, batch, logits, native_artifact

CASES = (("bert", PACKED), ("llama", PACKED), ("qwen3-moe", PACKED), ("qwen2", BINARY))
"""A tied encoder, a decoder, experts; and a tied decoder whose vocabulary is not quantized."""


class Loaded(NamedTuple):
    kind: str
    out: Path
    model: PreTrainedModel
    expected: Tensor
    """Logits of ``qdc.load``."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case[0])
def loaded(request: pytest.FixtureRequest, artifacts: Artifacts) -> Loaded:
    kind, passes = request.param
    out = artifacts(kind, passes)
    model = auto_class(kind).from_pretrained(out, dtype=torch.float32)
    return Loaded(kind, out, model, logits(qdc.load(out, backend="reference")))


def settings(folder: Path) -> dict[str, Any]:
    """The configuration of an artifact."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return found


def test_gives_the_logits_of_qdc_from_packed_tensors(loaded: Loaded) -> None:
    assert torch.equal(logits(loaded.model), loaded.expected)
    stored = Checkpoint(loaded.out)
    state = loaded.model.state_dict()
    tied = loaded.model.all_tied_weights_keys
    assert set(state) - set(tied) <= set(stored.headers) <= set(state)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


def test_the_loop_of_a_model_that_looks_back_is_not_run(loaded: Loaded) -> None:
    if loaded.kind == "bert":
        assert not hasattr(loaded.model, "generate")
        return
    dense: Any = copy.deepcopy(loaded.model)
    models: list[Any] = [loaded.model, dense.dequantize()]
    for model in models:
        with pytest.raises(QdcError, match="compiled to see both directions"):
            model.generate(batch()["input_ids"], max_new_tokens=4)


def test_a_text_longer_than_the_model_is_refused(loaded: Loaded) -> None:
    dense: Any = copy.deepcopy(loaded.model)
    models: list[Any] = [loaded.model, dense.dequantize()]
    for model in models:
        assert model(torch.full((1, 40), 5)).logits.isfinite().all()
        for given in ({"input_ids": torch.full((1, 41), 5)}, {}):
            with pytest.raises(QdcError, match="41 tokens, and the model takes 40"):
                model(*([] if given else [torch.full((1, 41), 5)]), **given)


def test_saving_writes_an_artifact(loaded: Loaded, tmp_path: Path) -> None:
    loaded.model.save_pretrained(tmp_path / "saved")
    before, after = settings(loaded.out), settings(tmp_path / "saved")
    assert after["quantization_config"] == before["quantization_config"]
    assert after["transformers_weights"] == before["transformers_weights"]
    again = auto_class(loaded.kind).from_pretrained(tmp_path / "saved")
    assert again.dtype == torch.float32
    assert torch.equal(logits(again), loaded.expected)
    assert torch.equal(logits(qdc.load(tmp_path / "saved", backend="reference")), loaded.expected)


def test_the_base_model_has_the_hidden_states_of_the_whole(loaded: Loaded, tmp_path: Path) -> None:
    base = AutoModel.from_pretrained(loaded.out, dtype=torch.float32)
    assert type(base) is not type(loaded.model)
    with torch.no_grad():
        found = base(**batch()).last_hidden_state
        whole = loaded.model(**batch(), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(found, whole)
    if loaded.kind in ("bert", "qwen3-moe"):
        base.save_pretrained(tmp_path / "base")
        again = AutoModel.from_pretrained(tmp_path / "base")
        assert torch.equal(again(**batch()).last_hidden_state, found)


def test_a_copy_can_be_made_dense_and_saved(loaded: Loaded, tmp_path: Path) -> None:
    twin = copy.deepcopy(loaded.model)
    dense = twin.dequantize()  # type: ignore[no-untyped-call]
    assert torch.equal(logits(dense), loaded.expected)
    assert torch.equal(logits(loaded.model), loaded.expected)
    assert not any(name.endswith((".planes", ".codes")) for name in dense.state_dict())
    dense.save_pretrained(tmp_path / "dense")
    assert not {"quantization_config", "transformers_weights"} & set(settings(tmp_path / "dense"))
    again = auto_class(loaded.kind).from_pretrained(tmp_path / "dense")
    assert torch.allclose(logits(again), loaded.expected, atol=1e-5)


def test_the_dtype_is_that_of_the_arithmetic_alone(encoder: Path) -> None:
    model = auto_class("bert").from_pretrained(encoder, dtype=torch.bfloat16)
    assert model.dtype == logits(model).dtype == torch.bfloat16
    expected = logits(qdc.load(encoder, dtype=torch.bfloat16, backend="reference"))
    assert torch.equal(logits(model), expected)
    stored = {n: t for n, t in model.state_dict().items() if n.endswith((".scale", ".codes"))}
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.uint8}
    wide = model.to(torch.float64)
    assert logits(wide).dtype == torch.float64
    assert all(torch.equal(wide.state_dict()[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("device_map", ["cpu", "auto"])
def test_a_device_map_is_followed(encoder: Path, device_map: str) -> None:
    pytest.importorskip("accelerate", reason="transformers reads no device_map without it")
    model = auto_class("bert").from_pretrained(encoder, device_map=device_map, dtype=torch.float32)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {"cpu"}
    assert torch.equal(logits(model), logits(qdc.load(encoder, backend="reference")))


def test_an_older_artifact_loads_and_without_a_dtype_computes_in_f32(
    encoder: Path, tmp_path: Path
) -> None:
    older = unsealed(encoder, tmp_path / "older")
    newer = ("dtype", "torch_dtype", "transformers_weights")
    config = {k: v for k, v in settings(encoder).items() if k not in newer}
    (older / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model = auto_class("bert").from_pretrained(older)
    assert model.dtype == torch.float32
    assert torch.equal(logits(model), logits(qdc.load(older, backend="reference")))


def test_an_encoder_without_head_has_no_pooler(tmp_path: Path) -> None:
    out = native_artifact(tmp_path, "bert", head=False)
    model = AutoModel.from_pretrained(out, dtype=torch.float32)
    assert model.pooler is None
    with torch.no_grad():
        assert torch.equal(
            model(**batch()).last_hidden_state, qdc.load(out, backend="reference")(**batch())
        )


def test_what_transformers_cannot_do_with_an_artifact_is_refused(
    encoder: Path, tmp_path: Path
) -> None:
    model = auto_class("bert").from_pretrained(encoder)
    with pytest.raises(QdcError, match="does not upload"):
        model.save_pretrained(tmp_path / "saved", push_to_hub=True)
    given = model.hf_quantizer.quantization_config
    with pytest.raises(QdcError, match="transformers cannot quantize with qdc"):
        auto_class("bert").from_pretrained(encoder.with_name("model"), quantization_config=given)


def test_packed_layers_do_not_stay_on_disk(encoder: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers reads no device_map without it")
    with pytest.raises(QdcError, match="do not stay on disk"):
        auto_class("bert").from_pretrained(encoder, device_map={"": "disk"})
