"""Tokenizers of ``vocab.json`` and ``merges.txt``: the ids of transformers' own Qwen2 class."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers
from transformers import Qwen2Tokenizer

from qdc.errors import InvalidCheckpoint
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.compiles import compile_tiny
from tests.support.families import CASES, write_family

END, MASK = "<|endoftext|>", "<|mask|>"
MERGED = (("d", "e"), ("de", "f"), ("Ġ", "x"), ("1", "2"))
TEXT = "def f(x):\n    return x + 12 , x's é  \n"


def write(folder: Path, **changes: Any) -> Path:
    """The files of a Dream checkpoint, with a small vocabulary."""
    vocabulary = {
        token: place for place, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    vocabulary |= {"".join(pair): 256 + place for place, pair in enumerate(MERGED)}
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in MERGED)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings: dict[str, Any] = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": {
            "261": {"content": MASK, "special": True},
            "260": {"content": END, "special": True},
        },
        "eos_token": END,
        "pad_token": END,
        "mask_token": MASK,
        **changes,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def test_the_ids_are_those_of_the_native_class(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write(tmp_path))
    vocabulary = json.loads((tmp_path / "vocab.json").read_text())
    build: Callable[..., Qwen2Tokenizer] = Qwen2Tokenizer
    native = build(vocab=vocabulary, merges=list(MERGED))
    ids = encoder(tokenizer).document(TEXT)
    assert ids == native(TEXT)["input_ids"]
    assert vocabulary["def"] in ids
    assert vocabulary["12"] not in ids, "digits are split one by one"
    assert tokenizer.decode(ids) == TEXT
    assert (tokenizer.eos_token_id, tokenizer.mask_token_id, len(tokenizer)) == (260, 261, 262)
    assert tokenizer.decode([261]) == MASK


def test_a_special_token_in_a_document_is_text(tmp_path: Path) -> None:
    assert 261 not in encoder(load_tokenizer(write(tmp_path)))(f"a {MASK} b")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tokenizer_class": "Hostile"}, "has no tokenizer.json"),
        ({"tokenizer_class": None}, "has no tokenizer.json"),
        ({"added_tokens_decoder": {"300": {"content": MASK}}}, "do not follow on"),
        ({"added_tokens_decoder": {"x": {"content": MASK}}}, "without id or text"),
        ({"added_tokens_decoder": {"260": {"content": 7}}}, "without id or text"),
        ({"added_tokens_decoder": {}}, "names special tokens that"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    changes: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidCheckpoint, match=text):
        load_tokenizer(write(tmp_path, **changes))


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (write(tmp_path) / name).write_text("{" if name == "vocab.json" else "a b c\n")
    with pytest.raises(InvalidCheckpoint, match="are no tokenizer") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where == ("vocab.json", "merges.txt")


def test_an_artifact_takes_the_files_along(tmp_path: Path) -> None:
    model = write_family(tmp_path / "model", CASES["dream"])
    (model / "tokenizer.json").unlink()
    write(model)
    compile_tiny(model, tmp_path / "out")
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes()
    ids = [encoder(load_tokenizer(folder))(TEXT) for folder in (model, tmp_path / "out")]
    assert ids[0] == ids[1]
