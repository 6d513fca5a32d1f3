"""pack=pad: one document a row, whole with its special tokens, and padding that is no data."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidCalibration
from qdc.ir.facts import ModelFacts
from qdc.passes.calibrate_mcs import CalibrateMcs
from qdc.passkit import padding
from qdc.passkit.padding import draw_padded, filling
from qdc.passkit.samples import draw_samples
from qdc.streaming.batches import PADDING
from qdc.text.records import Dialogue, Message
from qdc.text.source import TextSource
from qdc.text.surround import Surround
from qdc.text.tokenizer import Encoder, encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED, MASK

FACTS = ModelFacts(family="toy", mask_token_id=MASK, vocabulary=2048, max_length=64)
texts = st.lists(st.text("abc", max_size=12), min_size=1, max_size=9)


@pytest.fixture
def encode() -> Encoder:
    return encoder(load_tokenizer(EMBEDDED))


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@settings(max_examples=60)
@given(documents=texts, samples=st.integers(1, 20), length=st.integers(1, 9))
def test_rows_are_documents_from_their_beginning(
    documents: list[str], samples: int, length: int
) -> None:
    filled = [place for place, text in enumerate(documents) if text]
    if not filled:
        with pytest.raises(InvalidCalibration, match="no token"):
            draw_padded(documents, letters, samples, length, 0, 7)
        return
    found = draw_padded(documents, letters, samples, length, 0, 7)
    assert found.windows.shape == found.segments.shape == (samples, length)
    for row, segments, owner in zip(found.windows, found.segments, found.owners, strict=True):
        text = documents[owner][:length]
        assert row.tolist() == [*letters(text), *[7] * (length - len(text))]
        assert segments.tolist() == [0] * len(text) + [PADDING] * (length - len(text))
    for start in range(0, samples, len(filled)):
        round_ = found.owners[start : start + len(filled)]
        assert len(set(round_)) == len(round_), "none comes twice before all have come"
    longer = {owner for owner in found.owners if len(documents[owner]) > length}
    assert (found.cut, found.empty) == (len(longer), len(documents) - len(filled))


def test_orders_are_random_and_repeat_with_the_seed() -> None:
    documents = [chr(97 + number) for number in range(20)]
    first, second, other = (
        draw_padded(documents, letters, 40, 2, seed, 0).owners for seed in (1, 1, 2)
    )
    assert first == second != other
    assert first[:20] != first[20:]


def test_long_documents_are_read_as_far_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def encode(text: str) -> list[int]:
        read.append(len(text))
        return letters(text.replace("-", ""))

    monkeypatch.setattr(padding, "is_small", lambda documents: False)
    dense, sparse = "ab" * 5000, "-" * 9000 + "ab"
    found = draw_padded([dense, sparse], encode, 2, 4, 0, 0)
    assert sorted(read) == [128, 128, 9002], "the second has no token in its beginning"
    rows = dict(zip(found.owners, found.windows.tolist(), strict=True))
    assert rows == {0: letters("abab"), 1: [*letters("ab"), 0, 0]}
    assert (found.cut, found.looked_at) == (1, 2)


def source(*documents: str) -> TextSource:
    return TextSource("given", "0" * 64, documents)


def test_documents_keep_their_special_tokens_and_a_prefix_of_their_own(encode: Encoder) -> None:
    encode.surround = Surround((5,), (6,))
    short, long = "one two", "one two three four five six seven eight " * 9
    found = draw_samples(source(short, long), encode, FACTS, 2, 32, 0, 0.5, "pad")
    assert found.segments is not None
    data = found.segments != PADDING
    rows = {
        int(part.sum()): row[part].tolist() for row, part in zip(found.clean, data, strict=True)
    }
    whole = encode.document(short)
    assert whole[0] == 5
    assert whole[-1] == 6
    assert rows == {len(whole): whole, 32: encode.document(long)[:32]}
    for maskable, part in zip(found.maskable, data, strict=True):
        size = int(part.sum())
        assert maskable.nonzero().flatten().tolist() == list(range(size // 2, size))
    use = found.use
    assert (use.cut, use.used, use.padding) == (1, 2, 32 - len(whole))
    assert use.tokens == len(whole) + len(encode.document(long))
    assert use.said[0].endswith("2 used, 1 cut, 0 without a token")
    assert f"{use.padding / 64:.0%} padding" in use.said[1]


def test_much_padding_is_a_warning(encode: Encoder) -> None:
    use = draw_samples(source("one", "two"), encode, FACTS, 2, 40, 0, 0.25, "pad").use
    assert any("of the positions are padding" in warning for warning in use.warnings)


def test_the_token_behind_a_document_is_no_mask(encode: Encoder) -> None:
    assert filling(letters, 9, 0) == 1
    assert filling(letters, 9, None) == 0
    ends = encode.tokenizer.eos_token_id
    assert filling(encode, 2048, MASK) in (encode.tokenizer.pad_token_id, ends)
    assert filling(encode, 2048, encode.tokenizer.pad_token_id) != encode.tokenizer.pad_token_id


def test_records_stand_alone(encode: Encoder) -> None:
    pairs = [(f"what is {n} and {n}", f"it is {2 * n}") for n in range(8)]
    dialogues = tuple(Dialogue((Message("user", prompt),), answer) for prompt, answer in pairs)
    text = TextSource("given", "0" * 64, (), dialogues)
    found = draw_samples(text, encode, FACTS, 8, 40, 0, 0.25, "pad")
    assert found.segments is not None
    wholes = set()
    for row, part, maskable in zip(found.clean, found.segments, found.maskable, strict=True):
        data = part != PADDING
        assert not maskable[~data].any()
        wholes.add((tuple(row[data & ~maskable].tolist()), tuple(row[maskable].tolist())))
    assert wholes == {
        (tuple(prompt), tuple(answer)) for prompt, answer in map(encode.dialogue, dialogues)
    }
    assert (found.use.pack, found.use.used, found.use.cut) == ("pad", 8, 0)
    assert found.use.said[0].startswith("8 records")
    with pytest.raises(InvalidCalibration, match="need 9 records"):
        draw_samples(text, encode, FACTS, 9, 40, 0, 0.25, "pad")


def test_isolated_windows_number_their_documents(encode: Encoder) -> None:
    documents = [f"document {number} of several" for number in range(6)]
    found = draw_samples(source(*documents), encode, FACTS, 2, 30, 0, 0, isolate=True)
    assert found.segments is not None
    plain = draw_samples(source(*documents), encode, FACTS, 2, 30, 0, 0)
    assert torch.equal(found.clean, plain.clean)
    assert plain.segments is None
    for row, segments in zip(found.clean, found.segments, strict=True):
        ends = encode.tokenizer.eos_token_id
        behind = [0, *(row == ends).long().cumsum(0).tolist()[:-1]]
        assert segments.tolist() == behind, "each document ends with its separator"
    assert found.use.said[1].endswith("documents apart")


def test_isolate_is_refused_where_it_would_do_nothing(encode: Encoder) -> None:
    with pytest.raises(InvalidCalibration, match="there is one"):
        draw_samples(source("one document " * 40), encode, FACTS, 2, 30, 0, 0, isolate=True)
    for pack in ("pad", "within"):
        with pytest.raises(ValueError, match="does not read isolate"):
            CalibrateMcs(pack=pack, isolate=True)
