"""The tokenizer of a checkpoint: local files alone, whole documents, refused when they disagree."""

import json
import logging
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from qdc.errors import InvalidCheckpoint
from qdc.text.tokenizer import decode_marked, encoder, load_tokenizer

END, MASK = "<|endoftext|>", "<|mdm_mask|>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A byte-level tokenizer without merges, whose file asks for truncation and padding."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([END, MASK, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens([END, MASK])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=6)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {
        "tokenizer_class": "SomethingElse",
        "auto_map": {"AutoTokenizer": ["tokenizer.Hostile", None]},
        "eos_token": END,
        "pad_token": END,
        "mask_token": {"__type": "AddedToken", "content": MASK, "lstrip": False},
        "bos_token": None,
        "model_max_length": 8,
        "clean_up_tokenization_spaces": False,
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_whole_text_and_special_tokens(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Text longer than the model is neither cut nor padded, comes back, and warns nobody."""
    tokenizer = load_tokenizer(folder)
    text = "def f(x):\n    return x , é" * 3
    with caplog.at_level(logging.WARNING):
        ids = encoder(tokenizer)(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(encoder(tokenizer)("a")) == 1
    assert not caplog.records
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 0, 0)
    assert tokenizer.model_max_length == 8
    assert len(tokenizer) == 258


def test_without_settings(folder: Path) -> None:
    """The settings file may be absent."""
    (folder / "tokenizer_config.json").unlink()
    assert load_tokenizer(folder).mask_token is None


def test_silent(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Loading and encoding write nothing, not even beneath Python."""
    encoder(load_tokenizer(folder))("a" * 100)
    assert capfd.readouterr() == ("", "")


def test_missing(tmp_path: Path) -> None:
    """A checkpoint without tokenizer.json is told what to do."""
    with pytest.raises(InvalidCheckpoint, match=r"the checkpoint has no tokenizer\.json") as caught:
        load_tokenizer(tmp_path)
    assert caught.value.where == ("tokenizer.json",)
    assert "save_pretrained" in caught.value.help


def test_damaged(folder: Path) -> None:
    """A cut file is named."""
    path = folder / "tokenizer.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InvalidCheckpoint, match=r"tokenizer\.json is no tokenizer: ") as caught:
        load_tokenizer(folder)
    assert caught.value.where == ("tokenizer.json",)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", r"tokenizer_config\.json is no valid JSON"),
        ("\ufffe\u0000", r"tokenizer_config\.json is no valid JSON"),
        ("[]", r"tokenizer_config\.json holds no object"),
        ('{"eos_token": 3}', r"tokenizer_config\.json gives no text for eos_token"),
    ],
)
def test_damaged_settings(folder: Path, content: str, expected: str) -> None:
    """Damaged settings are named, too."""
    (folder / "tokenizer_config.json").write_text(content)
    with pytest.raises(InvalidCheckpoint, match=expected):
        load_tokenizer(folder)


def test_special_tokens_outside_the_vocabulary(folder: Path) -> None:
    """A special token never gets an id that the model does not know."""
    settings = {"eos_token": "<eos>", "mask_token": MASK, "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InvalidCheckpoint, match="names special tokens that") as caught:
        load_tokenizer(folder)
    assert caught.value.where == ("eos_token '<eos>'", "unk_token '<unk>'")


def test_a_special_token_in_the_text_is_text(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    ids = encoder(tokenizer)(f"a{MASK}b{END}")
    assert not {0, 1} & set(ids)
    assert tokenizer.decode(ids) == f"a{MASK}b{END}"


BYTE_PAIRS = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": ""}}, "is no tokenizer"),
        ({"model": {**BYTE_PAIRS, "continuing_subword_prefix": "aaa"}}, "is no tokenizer"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "cannot read a text"),
        ({"model": {"type": "Unigram", "vocab": [["a", -1.0]]}}, "cannot read a text: Encountered"),
        (
            {"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 9}},
            "cannot write these tokens",
        ),
    ],
)
def test_what_tokenizers_raises_or_panics_with(
    tmp_path: Path, fields: dict[str, object], expected: str
) -> None:
    """A panic is no ``Exception``: it would end a thread, or a process with a traceback."""
    content = {"version": "1.0", "added_tokens": [], "model": BYTE_PAIRS, **fields}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InvalidCheckpoint, match=expected):
        decode_marked(load_tokenizer(tmp_path), encoder(load_tokenizer(tmp_path))("abba c"))
