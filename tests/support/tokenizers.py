"""Small tokenizers of the kinds that models come with, by what they put around a text."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

MASK = "[MASK]"
BERT = ("[PAD]", MASK, "[CLS]", "[SEP]", "[UNK]")
"""The mask has the id of the models of ``tests.support.natives``."""
LLAMA = ("<pad>", "<mask>", "<s>", "</s>")
WORDS = ("one", "two", "three", "[", "]", "cls", "sep", "mask", ".", ",", "##s")
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def bert() -> Tokenizer:
    """WordPiece between [CLS] and [SEP]."""
    letters = list(map(chr, range(ord("a"), ord("z") + 1)))
    names = [*BERT, *WORDS, *letters, *(f"##{each}" for each in letters)]
    vocabulary = {name: number for number, name in enumerate(names)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(list(BERT))
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return made


def byte_level(processor: Any) -> Tokenizer:
    """Bytes as tokens, as GPT-2's and Qwen2's without their merges."""
    vocabulary = {name: number for number, name in enumerate([*LLAMA, *ALPHABET])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    made.add_special_tokens(list(LLAMA))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if processor is not None:
        made.post_processor = processor
    return made


def begun() -> Any:
    """BOS in front, as Llama's."""
    return processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 2)]
    )


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bert": bert,
    "llama": lambda: byte_level(begun()),
    "llama-3": lambda: byte_level(
        processors.Sequence([processors.ByteLevel(trim_offsets=False), begun()])
    ),
    "roberta": lambda: byte_level(processors.RobertaProcessing(("</s>", 3), ("<s>", 2))),
    "gpt2": lambda: byte_level(processors.ByteLevel(trim_offsets=False)),
    "qwen2": lambda: byte_level(None),
}
"""By the model that is known for it."""


def write_tokenizer(folder: Path, kind: str) -> Path:
    """Put a tokenizer in place of that of a folder."""
    KINDS[kind]().save(str(folder / "tokenizer.json"))
    names = {
        "bert": {
            "pad_token": "[PAD]", "mask_token": MASK, "cls_token": "[CLS]",
            "sep_token": "[SEP]", "unk_token": "[UNK]",
        }
    }.get(kind, {"pad_token": "<pad>", "mask_token": "<mask>", "bos_token": "<s>",
                 "eos_token": "</s>"})  # fmt: skip
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder
