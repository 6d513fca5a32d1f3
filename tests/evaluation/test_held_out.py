"""Held-out windows: every token once, in order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import QdcError
from qdc.evaluation.evaluate import held_out_windows


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
    """Windows are the documents cut up, the remainder dropped; fewer are a choice in order."""
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


@pytest.mark.parametrize(("length", "most", "said"), [(0, None, "any number of"), (4, 0, "0")])
def test_senseless_sizes(length: int, most: int | None, said: str) -> None:
    """No windows, or windows of nothing, are refused."""
    with pytest.raises(QdcError, match=f"found {said} windows of {length} tokens"):
        held_out_windows(["abcdefgh"], encode, length, most)
