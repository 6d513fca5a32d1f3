"""Samples from any source, and text that is too little or not what the tokenizer knows."""

import pytest
import torch

from qdc.errors import InvalidCalibration
from qdc.ir.facts import ModelFacts
from qdc.passkit.samples import draw_samples
from qdc.passkit.windows import draw_joined, draw_within
from qdc.text.joined import join
from qdc.text.records import Dialogue, Message
from qdc.text.source import TextSource, read_text
from qdc.text.tokenizer import Encoder, encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, MASK

FACTS = ModelFacts(family="toy", mask_token_id=MASK, vocabulary=2048, max_length=64)


@pytest.fixture(scope="module")
def encode() -> Encoder:
    return encoder(load_tokenizer(EMBEDDED))


def documents(*texts: str) -> TextSource:
    return TextSource("given", "0" * 64, texts)


def dialogues(*pairs: tuple[str, str]) -> TextSource:
    found = tuple(Dialogue((Message("user", prompt),), answer) for prompt, answer in pairs)
    return TextSource("given", "0" * 64, (), found)


def test_documents_give_windows_behind_a_prefix(encode: Encoder) -> None:
    source = read_text(None)
    clean, maskable, *_ = draw_samples(source, encode, FACTS, 4, 20, 0, prefix=0.25)
    drawn = draw_joined(join(source.documents, encode), 4, 20, 0)
    assert torch.equal(clean, drawn.windows)
    within = draw_samples(source, encode, FACTS, 4, 20, 0, 0, "within").clean
    assert torch.equal(within, draw_within(source.documents, encode, 4, 20, 0).windows)
    assert maskable.sum(1).tolist() == [15] * 4
    assert not maskable[:, :5].any()


def test_dialogues_give_answers(encode: Encoder) -> None:
    pairs = [(f"what is {n} and {n}", f"it is {2 * n}") for n in range(12)]
    clean, maskable, *_ = draw_samples(dialogues(*pairs), encode, FACTS, 6, 24, 0, prefix=0.25)
    decoded = encode.tokenizer.decode(clean[maskable].tolist())
    assert "it is" in decoded
    assert "what" not in decoded
    assert "what is" in encode.tokenizer.decode(clean[~maskable].tolist())


def test_too_few_windows_say_how_many(encode: Encoder) -> None:
    short = "one two three four"
    length = len(encode(short)) - 1
    with pytest.raises(InvalidCalibration) as caught:
        draw_samples(documents(short), encode, FACTS, 9, length, 0, 0, "within")
    assert caught.value.what == (
        f"found 1 documents that give 2 different windows of {length} tokens, "
        "need at least 5 for 9 samples"
    )
    draw_samples(documents(short), encode, FACTS, 3, length, 0, 0, "within")


def test_tokens_that_the_model_lacks_are_refused(encode: Encoder) -> None:
    facts = FACTS.model_copy(update={"vocabulary": 40})
    with pytest.raises(InvalidCalibration, match=r"found token \d+, need one below 40"):
        draw_samples(read_text(None), encode, facts, 4, 20, 0, 0)


def test_text_that_the_tokenizer_does_not_know_is_refused(encode: Encoder) -> None:
    ids = encode("for i in range(10):\n    print(i)\n" * 4)
    most = max(set(ids), key=ids.count)
    encode = Encoder(encode.tokenizer)
    encode.unknown = most
    with pytest.raises(InvalidCalibration, match=r"does not know \d\d% of the text, need at most"):
        draw_samples(
            documents("for i in range(10):\n    print(i)\n" * 4), encode, FACTS, 2, 20, 0, 0
        )


def test_text_without_a_token_is_refused() -> None:
    with pytest.raises(InvalidCalibration, match="found no token in 2 documents") as caught:
        draw_samples(documents("?!", "..."), lambda text: [], FACTS, 2, 4, 0, 0)
    assert "5 characters" in caught.value.what


def test_dialogues_that_write_the_mask_are_refused(encode: Encoder) -> None:
    encode = Encoder(load_tokenizer(EMBEDDED))
    encode.tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    pairs = [("what is <|mdm_mask|> ?", "nothing " * 9)] * 4
    with pytest.raises(InvalidCalibration, match="write the mask token"):
        draw_samples(dialogues(*pairs), encode, FACTS, 2, 24, 0, 0)
