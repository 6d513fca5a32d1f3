"""What stands around a whole text is what the tokenizer puts there, as transformers calls it."""

from pathlib import Path

import pytest
from tokenizers import processors
from transformers import AutoTokenizer

from qdc.errors import InvalidCheckpoint
from qdc.text.records import Dialogue, Message
from qdc.text.surround import Surround
from qdc.text.tokenizer import Encoder, load_tokenizer
from tests.support.tokenizers import KINDS, byte_level, write_tokenizer

AROUND = {
    "bert": Surround((2,), (3,)),
    "llama": Surround((2,), ()),
    "llama-3": Surround((2,), ()),
    "roberta": Surround((2,), (3,)),
    "gpt2": Surround(),
    "qwen2": Surround(),
}
TEXTS = ("one two.", "", "[CLS] one [MASK] two [SEP]", "<s>one</s>", "a, b\n c", "<s>")


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_what_transformers_makes_of_a_text(kind: str, tmp_path: Path) -> None:
    """With special tokens in the text as text; alone, and in a batch."""
    encode = Encoder(load_tokenizer(write_tokenizer(tmp_path, kind)))
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert encode.surround == AROUND[kind]
    due = theirs(list(TEXTS), split_special_tokens=True)["input_ids"]
    for text, ids in zip(TEXTS, due, strict=True):
        assert encode.document(text) == ids
        assert encode.document(text) == theirs(text, split_special_tokens=True)["input_ids"]
        if "[" not in text and "<" not in text:
            assert encode.document(text, special=True) == theirs(text)["input_ids"]
        first, last = AROUND[kind]
        assert encode.prompt(text) == ids[: len(ids) - len(last)]
        assert encode(text) == ids[len(first) : len(ids) - len(last)]
    assert encode.document("one") == theirs("one")["input_ids"]


def test_special_tokens_that_are_meant_stand_once(tmp_path: Path) -> None:
    encode = Encoder(load_tokenizer(write_tokenizer(tmp_path, "bert")))
    plain = encode.document("one two")
    assert encode.document("[CLS] one two [SEP]", special=True) == plain
    assert encode.document("one two [SEP]", special=True) == plain
    assert encode.document("one two", special=True) == plain
    assert encode.prompt("[CLS] one two", special=True) == plain[:-1]
    assert encode.prompt("[CLS] one two [SEP]", special=True) == plain
    assert encode.prompt("[CLS] [CLS]", special=True) == [2, 2]
    assert 2 not in encode("[CLS] one two")
    assert encode.document("[MASK]", special=True) == [2, 1, 3]
    assert encode.document("", special=True) == [2, 3]


def test_the_option_wins_over_the_family_and_the_tokenizer(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, "llama"))
    assert Encoder(tokenizer).form == "<s> text"
    assert Encoder(tokenizer, "none").document("a") == Encoder(tokenizer)("a")
    published = Encoder(tokenizer, "auto", "generate.py of somebody")
    assert published.document("a") == Encoder(tokenizer)("a")
    assert published.form == ""
    assert "'<s> text'; as in generate.py of somebody, nothing is added" in published.withheld
    assert "--document-tokens add" in published.withheld
    added = Encoder(tokenizer, "add", "generate.py of somebody")
    assert (added.document("a"), added.withheld) == (Encoder(tokenizer).document("a"), "")
    bare = load_tokenizer(write_tokenizer(tmp_path, "qwen2"))
    assert Encoder(bare, "auto", "generate.py of somebody").withheld == ""


def test_a_post_processor_that_does_something_else_is_refused(tmp_path: Path) -> None:
    twice = processors.TemplateProcessing(
        single="<s> $A </s> $A", pair="$A $B:1", special_tokens=[("<s>", 2), ("</s>", 3)]
    )
    write_tokenizer(tmp_path, "llama")
    byte_level(twice).save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    with pytest.raises(InvalidCheckpoint, match="post-processor makes") as caught:
        Encoder(tokenizer)
    assert caught.value.where == ("tokenizer.json",)
    assert Encoder(tokenizer, "none").surround == Surround()


def test_a_dialogue_without_a_template_is_one_document(tmp_path: Path) -> None:
    encode = Encoder(load_tokenizer(write_tokenizer(tmp_path, "bert")))
    prompt, answer = encode.dialogue(Dialogue((Message("user", "one"),), "two"))
    assert [*prompt, *answer] == encode.document("one\ntwo")
    assert encode.dialogue(Dialogue((Message("user", "one"),), ""))[1] == []


def test_a_template_writes_its_own(tmp_path: Path) -> None:
    encode = Encoder(load_tokenizer(write_tokenizer(tmp_path, "llama")))
    encode.tokenizer.chat_template = (
        "<s>{% for m in messages %}{{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}>{% endif %}"
    )
    prompt, _ = encode.dialogue(Dialogue((Message("user", "a"),), ""))
    assert prompt == [2, *encode("a"), 3, *encode(">")]
