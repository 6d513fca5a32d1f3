"""DiffusionGemma from end to end: compiled, reloaded, compared with its own class, and exported."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import qdc
from qdc.cli import run
from qdc.errors import QdcError
from tests.support.canvas import CANVAS, in_transformers, native_logits, write_canvas
from tests.support.compiles import compile_tiny

TOLERANCE = 1e-4
LARGER: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "layer_types": None,
    "num_attention_heads": 8,
    "head_dim": 32,
    "per_layer_config": {"5": {"head_dim": 64, "num_key_value_heads": 1}},
    "intermediate_size": 256,
    "num_experts": 32,
    "top_k_experts": 4,
    "moe_intermediate_size": 64,
    "sliding_window": 16,
    "max_position_embeddings": 256,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_canvas(tmp_path_factory.mktemp("canvas") / "model")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    options: dict[str, Any] = {"samples": 8, "length": 24}
    report = compile_tiny(model, model.with_name("out"), "default", **options)
    assert report.predicted_bytes == report.tensor_bytes
    return model.with_name("out")


def tokens() -> Tensor:
    return torch.randint(0, 2048, (2, 27), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def check(model: Path, artifact: Path, folder: Path) -> None:
    """Loaded by each backend and exported, it gives what its own class gives."""
    loaded, mask = qdc.load(artifact, backend="reference"), torch.ones(2, 27, dtype=torch.int64)
    mask[1, :6] = 0
    first = loaded(tokens(), mask)[:, -CANVAS:]
    found = loaded(tokens(), mask, first / 0.5)[:, -CANVAS:]
    exact = qdc.load(artifact, backend="cpu{arithmetic=f32}")
    packed = exact(tokens(), mask, first / 0.5)[:, -CANVAS:]
    torch.testing.assert_close(packed, found, atol=1e-3, rtol=0)
    report = qdc.export(artifact, out=folder, dtype="f32", verify=True)
    native = in_transformers(folder)
    torch.testing.assert_close(first, native_logits(native, tokens(), mask),
                               atol=TOLERANCE, rtol=0)  # fmt: skip
    torch.testing.assert_close(found, native_logits(native, tokens(), mask, first / 0.5),
                               atol=TOLERANCE, rtol=0)  # fmt: skip
    stored = load_file(model / "model.safetensors")
    written = {n: t for file in folder.glob("*.safetensors") for n, t in load_file(file).items()}
    text = {name for name in stored if "vision" not in name}
    assert {n: t.shape for n, t in written.items()} == {n: stored[n].shape for n in text}
    assert report.tensors == len(text)
    original = qdc.load_original(model)(tokens(), mask)[:, -CANVAS:]
    apart = (first - original).square().mean() / original.square().mean()
    assert 1e-3 < float(apart) < 1.8  # unrelated logits would be 2 apart


def test_compiles_reloads_and_equals_the_native_class(
    model: Path, artifact: Path, tmp_path: Path
) -> None:
    check(model, artifact, tmp_path / "dense")


def test_every_matrix_of_the_blocks_is_quantized(artifact: Path) -> None:
    settings = json.loads((artifact / "config.json").read_text())["quantization_config"]
    places = (
        "self_attn.{q,k,v,o}_proj", "mlp.{gate,up,down}_proj",
        *(f"experts.{number}.{{gate,up,down}}_proj" for number in range(4)),
    )  # fmt: skip
    wanted = {
        f"model.decoder.layers.{layer}.{start}{role}{end}"
        for layer in (0, 1)
        for start, roles, end in ((p.partition("{")[0], p.partition("{")[2].partition("}")[0],
                                   p.partition("}")[2]) for p in places)
        for role in roles.split(",")
        if (layer, start, role) != (1, "self_attn.", "v")  # a block that sees all has no values
    }  # fmt: skip
    assert set(settings["layers"]) - {"model.decoder.embed_tokens"} == wanted


def test_commands_show_plan_and_tell_what_is_left_out(
    model: Path, artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*words: object) -> str:
        assert run(list(map(str, words))) == 0
        return capsys.readouterr().out

    assert "canvas of 8" in said("show", artifact)
    plan = said("plan", model, "--passes", "rtn-lower{bits=4 group=16},pack")
    assert "16 left out (16 of the part that reads images" in " ".join(plan.split())
    assert "damaged" not in said("verify", artifact)


def test_classes_of_transformers_do_not_stand_in(artifact: Path) -> None:
    from transformers import DiffusionGemmaForBlockDiffusion

    import qdc.hf  # noqa: F401  # registers what is asked for below

    with pytest.raises(QdcError, match="from other tensors"):
        DiffusionGemmaForBlockDiffusion.from_pretrained(artifact)


@pytest.mark.slow
@pytest.mark.parametrize(("passes", "fields"), [("default", LARGER), ("best", {})])
def test_a_larger_one_and_the_longest_pipeline(
    passes: str, fields: dict[str, Any], tmp_path: Path
) -> None:
    model = write_canvas(tmp_path / "model", **fields)
    options: dict[str, Any] = {"samples": 8, "length": 48}
    compile_tiny(model, tmp_path / "out", passes, **options)
    check(model, tmp_path / "out", tmp_path / "dense")
