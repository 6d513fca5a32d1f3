"""The tokenizer of a checkpoint as keys of a GGUF file: byte pairs, kinds of tokens, template.

llama.cpp splits a text by an expression that it knows by a name (``tokenizer.ggml.pre``). The name
follows from the expression in the checkpoint's own tokenizer; one that no name stands for is
refused, for a near miss would tokenise most texts right and some wrong.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from qdc.errors import UnsupportedModel
from qdc.gguf.names import Naming
from qdc.text.tokenizer import load_tokenizer

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Kinds of tokens, as the file numbers them."""
BEGIN: Final = frozenset({"llada"})
"""Architectures whose published files put ``bos`` in front of a text, where there is one."""
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
PRE_TOKENIZERS: Final = {
    rf"{SHORT}|{WORDS}|\p{{N}}|{SIGNS}|{SPACES}": "qwen2",
    rf"{SHORT}|{WORDS}|\p{{N}}{{1,3}}|{SIGNS}|{SPACES}": "llama-bpe",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|"
    r"\s*[\r\n]|\s+(?!\S)|\s+": "llada-moe",
}
"""Names of llama.cpp for expressions that split a text."""


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, in the terms of the file."""

    pre: str
    """Name of the expression that splits a text."""
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: Mapping[str, int]
    """Ids of ``bos``, ``eos`` and ``pad``, where there are some."""
    begins: bool
    """Whether a text begins with ``bos``."""
    template: str | None

    def write(self, writer: Any) -> None:
        """Write its keys with a ``gguf.GGUFWriter``."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        for name, number in self.special.items():
            getattr(writer, f"add_{name}_token_id")(number)
        writer.add_add_bos_token(self.begins)
        if self.template is not None:
            writer.add_chat_template(self.template)


def read_vocabulary(folder: Path, model: Naming, pre: str | None = None) -> Vocabulary:
    """Read the tokenizer of a folder.

    Args:
        folder: of the checkpoint or artifact.
        model: gives the rows of the embedding; those without a token are marked as unused.
        pre: the name of the expression that splits a text; read off the tokenizer if not given.

    Raises:
        InvalidCheckpoint: there is no tokenizer, or it is damaged.
        UnsupportedModel: llama.cpp has nothing like it.
    """
    tokenizer = load_tokenizer(folder)
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    pairs = described["model"]
    if pairs.get("type") != "BPE" or pairs.get("byte_fallback"):
        raise UnsupportedModel(
            "the tokenizer has no byte pairs, and llama.cpp's models of these families do",
            where=[str(folder)],
            help="export the model dense, and convert it with llama.cpp's own script",
        )
    tokens, kinds = _tokens(pairs["vocab"], described.get("added_tokens") or [], model.sizes.rows)
    special = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "pad": tokenizer.pad_token_id,
    }
    template = tokenizer.chat_template
    return Vocabulary(
        pre=pre or _pre_tokenizer(described, folder),
        tokens=tokens,
        kinds=kinds,
        merges=[_merge(pair) for pair in pairs["merges"]],
        special={name: number for name, number in special.items() if number is not None},
        begins=tokenizer.bos_token_id is not None
        and (model.architecture in BEGIN or _begins(tokenizer)),
        template=template if isinstance(template, str) else None,
    )


def _tokens(
    vocabulary: Mapping[str, int], added: list[dict[str, Any]], rows: int
) -> tuple[list[str], list[int]]:
    by_number = {number: (token, NORMAL) for token, number in vocabulary.items()}
    for entry in added:
        by_number[entry["id"]] = (entry["content"], CONTROL if entry["special"] else USER_DEFINED)
    beyond = sorted(token for number, (token, _) in by_number.items() if number >= rows)
    if beyond:
        raise UnsupportedModel(
            f"the tokenizer has tokens beyond the {rows} rows of the embedding", where=beyond
        )
    pairs = [by_number.get(number, (f"[PAD{number}]", UNUSED)) for number in range(rows)]
    return [token for token, _ in pairs], [kind for _, kind in pairs]


def _merge(pair: str | list[str]) -> str:
    """The two parts with a space between them."""
    return pair if isinstance(pair, str) else " ".join(pair)


def _begins(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts its first token in front of a text."""
    ids = tokenizer("a")["input_ids"]
    return bool(ids) and ids[0] == tokenizer.bos_token_id


def _pre_tokenizer(described: Mapping[str, Any], folder: Path) -> str:
    """The name of the expression by which the tokenizer splits a text."""
    steps = described.get("pre_tokenizer") or {}
    steps = steps.get("pretokenizers", [steps])
    splits = [step for step in steps if step.get("type") == "Split"]
    whole = [step for step in steps if step.get("type") == "ByteLevel"]
    known = len(steps) == len(splits) + len(whole) and len(whole) == 1
    if known and not whole[0].get("add_prefix_space"):
        if not splits and whole[0].get("use_regex"):
            return "gpt-2"
        expressions = [step.get("pattern", {}).get("Regex") for step in splits]
        if len(expressions) == 1 and expressions[0] in PRE_TOKENIZERS:
            return PRE_TOKENIZERS[expressions[0]]
    raise UnsupportedModel(
        "llama.cpp has no name for the way in which the tokenizer splits a text",
        where=[str(folder), json.dumps(steps)[:200]],
        help="say which of its names it is, if it is one: --backend 'gguf{pre-tokenizer=NAME}', "
        "qdc export --pre-tokenizer NAME",
    )
