"""Weights and configuration: from llama.cpp's names, blocks and order of rows to transformers'."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import torch
from gguf import GGUFReader
from gguf.quants import dequantize
from torch import Tensor

from qdc.errors import QdcError

PLACES: Final = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
ROTATED: Final = {"attn_q": "head_count", "attn_k": "head_count_kv"}
"""Tensors whose rows llama.cpp's converter reorders, and the key with the number of their heads."""


def settings(reader: GGUFReader) -> dict[str, Any]:
    """``config.json`` of a ``LlamaForCausalLM``. The embedding is also the head: there is no other.

    Raises:
        QdcError: the file holds another architecture.
    """
    architecture = key(reader, "general.architecture")
    if architecture != "llama":
        raise QdcError(f"the file holds a {architecture}, need a llama")
    heads = key(reader, "llama.attention.head_count")
    width = key(reader, "llama.embedding_length")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": width,
        "intermediate_size": key(reader, "llama.feed_forward_length"),
        "num_hidden_layers": key(reader, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": key(reader, "llama.attention.head_count_kv"),
        "head_dim": width // heads,
        "vocab_size": key(reader, "llama.vocab_size"),
        "max_position_embeddings": key(reader, "llama.context_length"),
        "rope_theta": key(reader, "llama.rope.freq_base"),
        "rms_norm_eps": _shortest(key(reader, "llama.attention.layer_norm_rms_epsilon")),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": key(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": key(reader, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": key(reader, "tokenizer.ggml.padding_token_id"),
        "dtype": "float32",
    }


def tensors(reader: GGUFReader) -> Iterator[tuple[str, Tensor]]:
    """Name and ``f32`` values of each tensor, one at a time.

    Raises:
        QdcError: a tensor has no place, or the head is stored apart from the embedding.
    """
    for stored in reader.tensors:
        *block, role, part = stored.name.split(".")
        if role not in PLACES or part != "weight" or (block and block[0] != "blk"):
            raise QdcError("a tensor has no place in a Llama with tied head", where=[stored.name])
        values = torch.from_numpy(np.array(dequantize(stored.data, stored.tensor_type)))
        if role in ROTATED:
            values = unrotated(values, key(reader, f"llama.attention.{ROTATED[role]}"))
        prefix = f"model.layers.{block[1]}." if block else ""
        yield f"{prefix}{PLACES[role]}.weight", values.float().contiguous()


def unrotated(rows: Tensor, heads: int) -> Tensor:
    """Rows ``[heads * size, columns]`` with the two halves of each head behind one another again.

    llama.cpp rotates neighbouring rows, transformers row i and row i + size / 2; its converter
    moves one order into the other.
    """
    pairs = torch.unflatten(rows, 0, (heads, -1, 2))
    found: Tensor = pairs.transpose(1, 2).flatten(0, 2)
    return found


def key(reader: GGUFReader, name: str) -> Any:
    """A value of the file's header. Raises ``QdcError`` where it is missing."""
    field = reader.fields.get(name)
    if field is None:
        raise QdcError(f"the file has no key {name}")
    return field.contents()


def numbers(config: Mapping[str, Any]) -> int:
    """Weights of the linears inside the blocks."""
    width, inner = config["hidden_size"], config["intermediate_size"]
    narrow = config["head_dim"] * config["num_key_value_heads"]
    per_block = 2 * width * width + 2 * width * narrow + 3 * width * inner
    return int(per_block * config["num_hidden_layers"])


def _shortest(value: float) -> float:
    """The decimal number that a float32 stands for: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
