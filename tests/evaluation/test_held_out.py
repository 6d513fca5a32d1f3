"""Held-out windows: every token once, in order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import QdcError
from qdc.evaluation.evaluate import held_out, held_out_windows


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.text(max_size=40), min_size=1, max_size=5),
    length=st.integers(1, 20),
    most=st.none() | st.integers(1, 12),
)
def test_windows(documents: list[str], length: int, most: int | None) -> None:
    """Within documents, the remainder of each is dropped; fewer windows are a choice in order."""
    pieces = [d[i : i + length] for d in documents for i in range(0, len(d), length)]
    whole = [encode(piece) for piece in pieces if len(piece) == length]
    if not whole:
        with pytest.raises(QdcError):
            held_out_windows(documents, encode, length, most, "within")
        return
    found = held_out_windows(documents, encode, length, most, "within")
    assert found.dtype == torch.int64
    count = len(whole) if most is None else min(most, len(whole))
    assert found.tolist() == [whole[i * len(whole) // count] for i in range(count)]


def test_even_choice() -> None:
    """Every document keeps its share of a smaller choice."""
    documents = ["a" * 40, "b" * 40, "c" * 41]
    assert held_out_windows(documents, encode, 4, 3, "within")[:, 0].tolist() == encode("abc")
    assert held_out_windows(documents, encode, 4, None, "within").shape == (30, 4)


def test_too_short() -> None:
    """The error says what was there and what is needed."""
    with pytest.raises(QdcError) as caught:
        held_out_windows(["abc", ""], encode, 4, None, "within")
    assert "found 2 documents, the longest of 3 tokens, need one of at least 4" in str(caught.value)
    assert "help  take pack=documents, which joins them, or give longer held-out text" in str(
        caught.value
    )


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(st.text(max_size=40), min_size=1, max_size=5),
    length=st.integers(1, 20),
    most=st.none() | st.integers(1, 12),
)
def test_joined(documents: list[str], length: int, most: int | None) -> None:
    """Windows are all of the text cut up, and belong to the document in which they begin."""
    whole = [token for document in documents for token in encode(document)]
    owner = [number for number, document in enumerate(documents) for _ in document]
    starts = range(0, len(whole) - length + 1, length)
    if not starts:
        with pytest.raises(QdcError):
            held_out(documents, encode, length, most)
        return
    count = len(starts) if most is None else min(most, len(starts))
    chosen = [starts[i * len(starts) // count] for i in range(count)]
    windows, owners, use = held_out(documents, encode, length, most)
    assert windows.tolist() == [whole[start : start + length] for start in chosen]
    assert owners.tolist() == [owner[start] for start in chosen]
    assert (use.documents, use.tokens, use.windows) == (len(documents), len(whole), count)
    used = {number for start in chosen for number in owner[start : start + length]}
    assert use.used == len(used)


def test_of_large_text_only_windows_are_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is room enough between them; else all of it, piece by piece."""
    monkeypatch.setattr("qdc.text.joined.SMALL", 0)
    documents = [f"document {number:03} says so " * 40 for number in range(200)]
    seen = 0

    def counted(text: str) -> list[int]:
        nonlocal seen
        seen += len(text)
        return encode(text)

    found = held_out(documents, counted, 10, 8)
    assert seen < sum(map(len, documents)) / 4
    assert found.windows.shape == (8, 10)
    assert found.owners.tolist() == [25 * number for number in range(8)]
    whole = held_out(documents, counted, 10).windows
    assert "".join(map(chr, whole.flatten().tolist())) == "".join(documents)[: whole.numel()]


def test_dropped_documents_are_counted() -> None:
    use = held_out(["abc", "abcdefgh", "ab"], encode, 4, None, "within").use
    assert (use.documents, use.used, use.tokens, use.windows) == (3, 1, 13, 2)
    assert use.warnings[0].startswith("2 of 3 documents are too short for pack=within")
    with pytest.raises(QdcError, match="found 2 documents of 3 tokens in all, need at least the 4"):
        held_out(["ab", "c"], encode, 4)


@pytest.mark.parametrize(("length", "most", "said"), [(0, None, "any number of"), (4, 0, "0")])
def test_senseless_sizes(length: int, most: int | None, said: str) -> None:
    """No windows, or windows of nothing, are refused."""
    with pytest.raises(QdcError, match=f"found {said} windows of {length} tokens"):
        held_out_windows(["abcdefgh"], encode, length, most)
