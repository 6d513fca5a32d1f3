"""Checkpoints whose experts are stacked, as transformers holds them, are read expert by expert."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Gemma4ForCausalLM, Gemma4TextConfig

import qdc
from qdc.checkpoint.folder import Checkpoint
from qdc.errors import InvalidCheckpoint, QdcError
from qdc.frontend.opening import open_model
from qdc.runtime.load import load_checkpoint
from tests.support.checkpoints import VOCABULARY
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, stacked_state, write_family
from tests.support.natives import rewrite, write_native

State = dict[str, Tensor]
EXPERTS = 3


def apart(state: State) -> State:
    """Stacks of gate and of up projections, each by itself."""
    found: State = {}
    for name, tensor in stacked_state(state).items():
        head, _, leaf = name.rpartition(".")
        if leaf == "gate_up_proj":
            gate, up = tensor.chunk(2, 1)
            found |= {f"{head}.gate_proj": gate.contiguous(), f"{head}.up_proj": up.contiguous()}
        else:
            found[name] = tensor
    return found


def logits(folder: Path) -> Tensor:
    tokens = torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        found: Tensor = load_checkpoint(folder, "cpu", torch.float32)(tokens)
    return found


@pytest.mark.parametrize("form", [stacked_state, apart])
@pytest.mark.parametrize("name", ["llada-moe", "llada2"])
def test_families_read_stacks(name: str, form: Callable[[State], State], tmp_path: Path) -> None:
    plain = write_family(tmp_path / "plain", CASES[name])
    other = rewrite(plain, tmp_path / "stacked", form)
    assert any(len(header.shape) == 3 for header in Checkpoint(other).headers.values())
    assert torch.equal(logits(other), logits(plain))
    stacks, single = open_model(other)[0], open_model(plain)[0]
    assert set(stacks.headers) == set(single.headers)
    for key, header in single.headers.items():
        assert stacks.headers[key].shape == header.shape
        assert torch.equal(stacks.tensor(key), single.tensor(key))


def test_classes_of_transformers_read_stacks(tmp_path: Path) -> None:
    plain = write_native(tmp_path / "plain", "qwen3-moe")
    other = rewrite(plain, tmp_path / "stacked", stacked_state)
    assert torch.equal(logits(other), logits(plain))


def test_stacks_of_another_shape_or_beside_their_experts_are_refused(tmp_path: Path) -> None:
    plain = write_family(tmp_path / "plain", CASES["llada-moe"])
    turned = rewrite(
        plain,
        tmp_path / "turned",
        lambda state: {
            name: tensor.mT.contiguous() if tensor.ndim == 3 else tensor
            for name, tensor in stacked_state(state).items()
        },
    )
    with pytest.raises(InvalidCheckpoint, match="shape") as caught:
        open_model(turned)
    assert "experts." in caught.value.where[0]
    both = rewrite(plain, tmp_path / "both", lambda state: {**state, **stacked_state(state)})
    with pytest.raises(InvalidCheckpoint, match="one place"):
        open_model(both)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture that transformers saves stacked, with a dense feed-forward beside the experts."""
    fields: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size": 32,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 0,
        "head_dim": 16,
        "global_head_dim": 16,
        "max_position_embeddings": 64,
        "enable_moe_block": True,
        "num_experts": EXPERTS,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
        "layer_types": ["full_attention"],
        "sliding_window": 8,
        "pad_token_id": 0,
        "mask_token_id": 1,
    }
    config = Gemma4TextConfig(**fields)
    folder = tmp_path_factory.mktemp("gemma")
    source = write_native(folder / "tokenizer", "llama")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma4ForCausalLM(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / "model")
    for path in source.glob("tokenizer*"):
        (folder / "model" / path.name).write_bytes(path.read_bytes())
    return folder / "model"


@pytest.fixture(scope="module")
def artifact(gemma: Path) -> Path:
    out = gemma.with_name("out")
    compile_tiny(gemma, out, "rtn-lower{bits=4 group=32 zero=packed},pack")
    return out


def in_transformers(folder: Path) -> Tensor:
    config = Gemma4TextConfig.from_pretrained(folder)
    config.is_causal = False
    model = Gemma4ForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    model.train(mode=False)
    with torch.no_grad():
        found: Tensor = model(torch.arange(2, 26).view(2, 12), use_cache=False).logits
    return found


@pytest.mark.slow
def test_a_class_that_stores_stacks_is_compiled_and_exported_as_it_was(
    gemma: Path, artifact: Path, tmp_path: Path
) -> None:
    original = qdc.load_original(gemma)
    tokens = torch.arange(2, 26).view(2, 12)
    with torch.no_grad():
        torch.testing.assert_close(original(tokens), in_transformers(gemma), atol=1e-5, rtol=0)
    settings = Checkpoint(artifact).config["quantization_config"]["layers"]
    assert len([path for path in settings if ".experts." in path]) == EXPERTS * 3
    qdc.export(artifact, out=tmp_path / "dense", dtype="f32", verify=True)
    (file,) = (tmp_path / "dense").glob("*.safetensors")
    before, after = load_file(gemma / "model.safetensors"), load_file(file)
    assert {n: t.shape for n, t in after.items()} == {n: t.shape for n, t in before.items()}
    compiled = qdc.load(artifact, backend="reference")
    with torch.no_grad():
        expected = compiled(tokens)
    torch.testing.assert_close(in_transformers(tmp_path / "dense"), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_stacks_cannot_be_packed(artifact: Path, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    with pytest.raises(QdcError, match="three axes") as caught:
        qdc.export(artifact, out=tmp_path / "packed", format="compressed-tensors")
    assert len(caught.value.where) == EXPERTS * 3
    assert not (tmp_path / "packed").exists()
