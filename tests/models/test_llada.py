from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.models.families import BUILT_IN
from tests.support.checkpoints import write_checkpoint
from tests.support.families import CASES, LLAMA_NAMES

TOLERANCE = 1e-5
KEYS = {
    "model.transformer.wte.weight",
    *(f"model.transformer.blocks.{i}.{leaf}.weight" for i in range(2) for leaf in LLAMA_NAMES),
    "model.transformer.ln_f.weight",
    "model.transformer.ff_out.weight",
}


def ours(folder: Path) -> nn.Module:
    """The checkpoint in our implementation, fp32."""
    module, _ = BUILT_IN.build(Checkpoint(folder).config)
    module = module.to_empty(device="cpu")
    module.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return module


def native(folder: Path) -> nn.Module:
    """The same weights in transformers' Llama, made bidirectional."""
    case = replace(CASES["llada"], config=Checkpoint(folder).config)
    return case.native_model(load_file(folder / "model.safetensors"))


@pytest.fixture(scope="module", params=[None, 1], ids=["all heads", "grouped heads"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(
        tmp_path_factory.mktemp("llada"),
        d_model=64,
        mlp_hidden_size=96,
        n_heads=4,
        n_kv_heads=request.param,
        vocab=50,
        dtype=torch.float32,
    )


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, 50, (3, 11), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_equals_the_native_llama_without_a_causal_mask(folder: Path, tokens: Tensor) -> None:
    found = ours(folder)(tokens)
    expected = native(folder)(input_ids=tokens).logits
    assert found.shape == (3, 11, 50)
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_equals_the_native_llama_with_padding(folder: Path, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[1, 7:], mask[2, :4] = 0, 0
    real = mask.bool()
    found = ours(folder)(tokens, mask)
    expected = native(folder)(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(found[real], expected[real], atol=TOLERANCE, rtol=0)


@torch.no_grad()
def test_padded_positions_are_ignored(folder: Path, tokens: Tensor) -> None:
    model = ours(folder)
    mask = torch.ones_like(tokens)
    mask[:, 7:] = 0
    other = tokens.clone()
    other[:, 7:] = 49 - other[:, 7:]
    found = model(tokens, mask)[:, :7]
    torch.testing.assert_close(model(other, mask)[:, :7], found, atol=0, rtol=0)
    torch.testing.assert_close(model(tokens[:, :7]), found, atol=TOLERANCE, rtol=0)
    assert float((model(tokens)[:, :7] - found).abs().max()) > 0.01


@torch.no_grad()
def test_every_position_sees_every_other(folder: Path, tokens: Tensor) -> None:
    model = ours(folder)
    other = tokens.clone()
    other[:, -1] = (other[:, -1] + 1) % 50
    changed = (model(other) - model(tokens)).abs().amax(-1)
    assert bool((changed > 1e-4).all())


@torch.no_grad()
def test_boolean_and_integer_masks_agree(folder: Path, tokens: Tensor) -> None:
    mask = torch.ones_like(tokens)
    mask[0, 5:] = 0
    model = ours(folder)
    assert torch.equal(model(tokens, mask), model(tokens, mask.bool()))
    full = torch.ones_like(tokens)
    torch.testing.assert_close(model(tokens, full), model(tokens), atol=TOLERANCE, rtol=0)


def test_the_published_names_and_no_others(folder: Path) -> None:
    model, _ = BUILT_IN.build(Checkpoint(folder).config)
    assert set(model.state_dict()) == KEYS
    assert not list(model.named_buffers())


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_strict_loading_notices(folder: Path, change: str) -> None:
    module, _ = BUILT_IN.build(Checkpoint(folder).config)
    tensors = load_file(folder / "model.safetensors")
    if change == "missing":
        del tensors["model.transformer.blocks.1.ff_out.weight"]
    else:
        tensors["model.transformer.blocks.1.q_proj.bias"] = torch.zeros(64)
    with pytest.raises(RuntimeError, match=r"blocks\.1"):
        module.to_empty(device="cpu").load_state_dict(tensors, strict=True)


@torch.no_grad()
def test_bf16_stays_near_fp32(folder: Path, tokens: Tensor) -> None:
    model = ours(folder)
    wide = model(tokens)
    narrow = model.to(torch.bfloat16)(tokens)
    assert narrow.dtype == torch.bfloat16
    assert float((narrow.float() - wide).abs().mean()) < 0.05
