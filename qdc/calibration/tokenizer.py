"""A checkpoint's tokenizer, read from its own files: no network, no code of the checkpoint's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdc.errors import InvalidCheckpoint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TOKENIZER, SETTINGS = "tokenizer.json", "tokenizer_config.json"
SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"


def load_tokenizer(folder: Path) -> "PreTrainedTokenizerFast":
    """Read ``tokenizer.json`` and, where there is one, ``tokenizer_config.json``.

    Of the second file only the special tokens and the two settings of decoding and length count;
    classes that it names are never loaded. Stored truncation and padding are switched off, for
    documents are tokenised whole. Raises InvalidCheckpoint for a file that is missing or damaged,
    and for special tokens outside the vocabulary, whose ids the model would not know.
    """
    if not (folder / TOKENIZER).is_file():
        raise InvalidCheckpoint(
            f"the checkpoint has no {TOKENIZER}",
            where=[TOKENIZER],
            help="load its tokenizer with transformers and store it with save_pretrained",
        )
    settings = _settings(folder / SETTINGS)
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    try:
        backend = Tokenizer.from_file(str(folder / TOKENIZER))
    except Exception as error:  # tokenizers raises no narrower class
        raise InvalidCheckpoint(
            f"{TOKENIZER} is no tokenizer: {error}", where=[TOKENIZER], help="copy the file again"
        ) from error
    unknown = [
        f"{name} {token!r}"
        for name, token in settings.items()
        if name in SPECIAL and backend.token_to_id(token) is None
    ]
    if unknown:
        raise InvalidCheckpoint(
            f"{SETTINGS} names special tokens that {TOKENIZER} lacks",
            where=unknown,
            help="take both files from the same checkpoint",
        )
    backend.no_truncation()
    backend.no_padding()
    build: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    tokenizer = build(tokenizer_object=backend, **settings)
    tokenizer.deprecation_warnings[TOO_LONG] = True
    return tokenizer


def encoder(tokenizer: "PreTrainedTokenizerFast") -> Callable[[str], list[int]]:
    """Turn a tokenizer into a function from text to ids, without special tokens.

    None is added, and a special token that is written in the text is text: no document can mask
    or end itself.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return ids

    return encode


def _settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidCheckpoint(
            f"{SETTINGS} is no valid JSON: {error}", where=[SETTINGS], help="copy the file again"
        ) from error
    if not isinstance(found, dict):
        raise InvalidCheckpoint(
            f"{SETTINGS} holds no object", where=[SETTINGS], help="copy the file again"
        )
    kept = {name: _token(found[name], name) for name in SPECIAL if found.get(name) is not None}
    length = found.get("model_max_length")
    if isinstance(length, int) and not isinstance(length, bool) and length > 0:
        kept["model_max_length"] = length
    if isinstance(found.get("clean_up_tokenization_spaces"), bool):
        kept["clean_up_tokenization_spaces"] = found["clean_up_tokenization_spaces"]
    return kept


def _token(value: object, name: str) -> Any:
    content = value.get("content") if isinstance(value, dict) else value
    if not isinstance(content, str):
        raise InvalidCheckpoint(
            f"{SETTINGS} gives no text for {name}", where=[SETTINGS], help="copy the file again"
        )
    return content
