"""The byte-level BPE tokenizer, rebuilt from the tokens and merges that the GGUF file holds."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence

from bench.smollm2.weights import key
from qdc.errors import QdcError

NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
"""Kinds of tokens, as the file numbers them."""
SPECIAL = {"bos": "bos", "eos": "eos", "unknown": "unk", "padding": "pad"}
"""Names of the file's keys, and of the settings."""
PRE = "smollm"
"""llama.cpp's name for: single digits, then the words of GPT-2."""


def tokenizer(reader: GGUFReader) -> Tokenizer:
    """Rebuild it. Raises ``QdcError`` for a file with another kind of tokenizer."""
    kind, pre = key(reader, "tokenizer.ggml.model"), key(reader, "tokenizer.ggml.pre")
    if (kind, pre) != ("gpt2", PRE):
        raise QdcError(f"the tokenizer is {kind!r} with {pre!r}, need 'gpt2' with {PRE!r}")
    tokens = key(reader, "tokenizer.ggml.tokens")
    merges = [tuple(pair.split(" ")) for pair in key(reader, "tokenizer.ggml.merges")]
    found = Tokenizer(BPE({token: at for at, token in enumerate(tokens)}, merges))
    found.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    found.decoder = ByteLevelDecoder()
    found.add_special_tokens(list(_added(reader, tokens)))
    return found


def _added(reader: GGUFReader, tokens: list[str]) -> Iterator[AddedToken]:
    kinds = key(reader, "tokenizer.ggml.token_type")
    other = sorted({kind for kind in kinds if kind not in (NORMAL, CONTROL)})
    if other or len(kinds) != len(tokens):
        raise QdcError(f"{len(tokens)} tokens have {len(kinds)} kinds, of which {other} are new")
    for token, kind in zip(tokens, kinds, strict=True):
        if kind == CONTROL:
            yield AddedToken(token, special=True, normalized=False)


def write_tokenizer(reader: GGUFReader, folder: Path) -> Tokenizer:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` and return the tokenizer."""
    found = tokenizer(reader)
    found.save(str(folder / "tokenizer.json"))
    tokens = key(reader, "tokenizer.ggml.tokens")
    settings: dict[str, Any] = {
        f"{name}_token": tokens[key(reader, f"tokenizer.ggml.{stored}_token_id")]
        for stored, name in SPECIAL.items()
    }
    settings |= {
        "tokenizer_class": "GPT2TokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": key(reader, "llama.context_length"),
        "chat_template": key(reader, "tokenizer.chat_template"),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return found
