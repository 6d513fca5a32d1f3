"""Loading an artifact, which is untrusted: it works, or one clear error says why not."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import qdc
from qdc.errors import InvalidArtifact, InvalidCheckpoint
from tests.support.artifacts import unsealed
from tests.support.compiles import PLAIN, compile_tiny

LAYER = "model.transformer.blocks.0.q_proj"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00003.safetensors"
Edit = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(artifact: Path, tmp_path: Path) -> Path:
    return unsealed(artifact, tmp_path / "copy")


def edit_json(path: Path, edit: Edit) -> None:
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))


def edit_shard(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / SHARD)
    edit(tensors)
    save_file(tensors, folder / SHARD)


def refusal(folder: Path) -> InvalidArtifact:
    with pytest.raises(InvalidArtifact) as caught:
        qdc.load(folder)
    return caught.value


def test_logits_have_batch_length_and_vocabulary(artifact: Path) -> None:
    module = qdc.load(artifact)
    assert not module.training
    assert not any(parameter.requires_grad for parameter in module.parameters())
    logits = module(torch.tensor([[5, 6, 7], [8, 9, 10]]))
    assert logits.shape == (2, 3, 2048)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


def test_padding_is_hidden_by_the_mask(artifact: Path) -> None:
    module = qdc.load(artifact)
    alone = module(torch.tensor([[5, 6]]))
    padded = torch.tensor([[5, 6, 7, 8]])
    masked = module(padded, torch.tensor([[1, 1, 0, 0]]))
    torch.testing.assert_close(masked[:, :2], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(module(padded)[:, :2], alone, rtol=1e-3, atol=1e-4)


def test_the_dtype_is_the_one_asked_for(artifact: Path) -> None:
    module = qdc.load(artifact, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    assert module(torch.tensor([[1, 2]])).dtype == torch.bfloat16


def test_artifacts_and_checkpoints_are_not_mixed_up(artifact: Path) -> None:
    with pytest.raises(InvalidCheckpoint, match="is a qdc artifact"):
        qdc.load_original(artifact)
    error = refusal(artifact.parent / "model")
    assert "the folder is a plain checkpoint" in error.what
    assert "qdc compile" in error.help


def test_a_missing_folder_says_so(tmp_path: Path) -> None:
    assert "is not there" in refusal(tmp_path / "gone").what


def drop_planes(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{LAYER}.planes"]


def add_tensor(tensors: dict[str, Tensor]) -> None:
    tensors["model.more"] = torch.zeros(1)


def widen_scale(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.row_scale"] = tensors[f"{LAYER}.row_scale"].float()


def cut_planes(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.planes"] = tensors[f"{LAYER}.planes"][:1].clone()


def change_orders(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.orders"] += 1


def spoil_scale(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.col_scale"][0, 0, 0] = float("nan")


def integer_norm(tensors: dict[str, Tensor]) -> None:
    name = "model.transformer.blocks.0.attn_norm.weight"
    tensors[name] = tensors[name].to(torch.int32)


@pytest.mark.parametrize(
    ("edit", "what", "where"),
    [
        (drop_planes, "tensors that its shards do not hold", f"{LAYER}.planes"),
        (widen_scale, "the wrong dtype or shape", f"{LAYER}.row_scale: f32"),
        (cut_planes, "the wrong dtype or shape", f"{LAYER}.planes: u8[1,"),
        (change_orders, "the stored orders are not those", LAYER),
        (spoil_scale, "col_scale holds NaN or infinity", LAYER),
        (integer_norm, "the wrong dtype or shape", "blocks.0.attn_norm.weight: i32"),
    ],
)
def test_damaged_tensors_are_refused(
    edit: Callable[[dict[str, Tensor]], None], what: str, where: str, copy: Path
) -> None:
    edit_shard(copy, edit)
    error = refusal(copy)
    assert what in error.what
    assert any(where in place for place in error.where)


def test_a_tensor_without_a_place_is_refused(copy: Path) -> None:
    edit_shard(copy, add_tensor)
    edit_json(copy / INDEX, lambda data: data["weight_map"].update({"model.more": SHARD}))
    error = refusal(copy)
    assert error.what == "0 tensors are missing, 1 have no place in the model"
    assert error.where == ("model.more",)


def test_a_missing_tensor_is_refused(copy: Path) -> None:
    edit_shard(copy, drop_planes)
    edit_json(copy / INDEX, lambda data: data["weight_map"].pop(f"{LAYER}.planes"))
    error = refusal(copy)
    assert error.what == "1 tensors are missing, 0 have no place in the model"


@pytest.mark.parametrize("size", [0, 4, 200, -1])
def test_a_truncated_shard_is_refused(size: int, copy: Path) -> None:
    data = (copy / SHARD).read_bytes()
    (copy / SHARD).write_bytes(data[:size])
    error = refusal(copy)
    assert "no safetensors file, or is cut short" in error.what
    assert error.where == (str(copy / SHARD),)


@pytest.mark.parametrize("shard", ["../copy/x.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_leaves_the_folder_is_refused(shard: str, copy: Path) -> None:
    edit_json(copy / INDEX, lambda data: data["weight_map"].update({f"{LAYER}.planes": shard}))
    error = refusal(copy)
    assert "names files outside its folder" in error.what
    assert error.where == (shard,)


def set_layer(**fields: object) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"]["layers"][LAYER].update(fields)

    return edit


def set_quantization(**fields: object) -> Edit:
    def edit(config: dict[str, Any]) -> None:
        config["quantization_config"].update(fields)

    return edit


def move_layer(config: dict[str, Any]) -> None:
    layers = config["quantization_config"]["layers"]
    layers["model.transformer.blocks.7.q_proj"] = layers.pop(LAYER)


@pytest.mark.parametrize(
    ("edit", "what"),
    [
        (set_layer(codec="multi-binry"), "no codec is called 'multi-binry'"),
        (set_layer(codec=None), "no codec is called None"),
        (set_layer(rows=1 << 60), "rows Input should be less than or equal"),
        (set_layer(rows=1 << 23), "the model has no 8388608 x 32 weight there"),
        (set_layer(columns=0), "columns Input should be greater than 0"),
        (set_layer(orders=[2, 2]), "2 orders for 1 blocks"),
        (set_layer(orders=[3]), "the wrong dtype or shape"),
        (set_layer(orders=[9]), "orders must lie in 1..4"),
        (set_layer(rows="32"), "rows Input should be a valid integer (given '32')"),
        (set_layer(columns=True), "columns Input should be a valid integer (given True)"),
        (set_quantization(causal=1), "causal Input should be a valid boolean (given 1)"),
        (set_layer(more=1), "more Extra inputs are not permitted"),
        (set_layer(block=3), "block Input should be a multiple of 8"),
        (move_layer, "the model has no 32 x 32 weight there"),
        (set_quantization(format_version=3), "has format version 3, this qdc reads up to 2"),
        (set_quantization(format_version=0), "is not one of qdc: "),
        (set_quantization(quant_method="gptq"), "is not one of qdc: "),
        (set_quantization(layers=[]), "is not one of qdc: "),
        (set_quantization(layers={LAYER: 1}), "is not one of qdc: "),
        (set_quantization(layers={}), "have no place in the model"),
    ],
)
def test_a_wrong_configuration_is_refused(edit: Edit, what: str, copy: Path) -> None:
    edit_json(copy / "config.json", edit)
    error = refusal(copy)
    assert what in error.what


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "config.json is no JSON"),
        ("\x00\xff", "config.json is no JSON"),
        ("[1]", "config.json holds no object"),
        ("{}", "has no quantization_config"),
        ("[" * 100_000, "config.json is nested more than 100 deep"),
        ('{"quantization_config": ' + "9" * 5000 + "}", "config.json is no JSON"),
    ],
)
def test_garbage_instead_of_a_configuration_is_refused(text: str, what: str, copy: Path) -> None:
    (copy / "config.json").write_bytes(text.encode("latin-1"))
    assert what in refusal(copy).what


def test_a_configuration_that_is_gone_is_refused(copy: Path) -> None:
    (copy / "config.json").unlink()
    assert "cannot read config.json" in refusal(copy).what


@pytest.fixture(scope="module")
def eight_bit(artifact: Path) -> Path:
    """The model with scales of 8 bits."""
    out = artifact.with_name("eight-bit")
    compile_tiny(artifact.with_name("model"), out, PLAIN.replace("lower", "lower{scale-bits=8}"))
    return out


def test_scales_of_8_bits_are_loaded(eight_bit: Path, artifact: Path) -> None:
    entry = json.loads((eight_bit / "config.json").read_text())["quantization_config"]["layers"]
    assert {layer["scale_bits"] for layer in entry.values()} == {8}
    tokens = torch.tensor([[5, 6, 7]])
    one, other = qdc.load(eight_bit)(tokens), qdc.load(artifact)(tokens)
    assert one.isfinite().all()
    assert not torch.equal(one, other)
    sizes = [sum(f.stat().st_size for f in x.glob("*.safetensors")) for x in (eight_bit, artifact)]
    assert sizes[0] < sizes[1]


def test_an_artifact_from_before_scale_bits_is_loaded(artifact: Path, copy: Path) -> None:
    def drop(config: dict[str, Any]) -> None:
        for layer in config["quantization_config"]["layers"].values():
            assert layer.pop("scale_bits") == 16

    edit_json(copy / "config.json", drop)
    tokens = torch.tensor([[5, 6, 7]])
    assert torch.equal(qdc.load(copy)(tokens), qdc.load(artifact)(tokens))


def drop_peak(tensors: dict[str, Tensor]) -> None:
    del tensors[f"{LAYER}.row_peak"]


def spoil_peak(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.col_peak"][0, 0] = float("nan")


def reshape_peak(tensors: dict[str, Tensor]) -> None:
    tensors[f"{LAYER}.row_peak"] = tensors[f"{LAYER}.row_peak"].T.contiguous()


@pytest.mark.parametrize("edit", [drop_peak, spoil_peak, reshape_peak])
def test_peaks_that_are_missing_or_no_numbers_are_refused(
    edit: Callable[[dict[str, Tensor]], None], eight_bit: Path, tmp_path: Path
) -> None:
    broken = unsealed(eight_bit, tmp_path / "broken")
    edit_shard(broken, edit)
    refusal(broken)


@pytest.mark.parametrize("bits", [4, "8", None, 8])
def test_scale_bits_that_the_tensors_do_not_have_are_refused(copy: Path, bits: object) -> None:
    def change(config: dict[str, Any]) -> None:
        config["quantization_config"]["layers"][LAYER]["scale_bits"] = bits

    edit_json(copy / "config.json", change)
    refusal(copy)


def test_a_negative_peak_does_no_harm(eight_bit: Path, tmp_path: Path) -> None:
    broken = unsealed(eight_bit, tmp_path / "broken")

    def negate(tensors: dict[str, Tensor]) -> None:
        tensors[f"{LAYER}.row_peak"].neg_()

    edit_shard(broken, negate)
    assert qdc.load(broken)(torch.tensor([[5, 6, 7]])).isfinite().all()
