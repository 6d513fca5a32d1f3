"""Pairs, blocks and windows: every token is scored once, in the right place."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdc.errors import QdcError
from qdc.evaluation.harness.passages import Passage, encode_pair, passage, pieces, rolling


def words(text: str) -> list[int]:
    """One token a character, but ``ab`` is one of its own."""
    found: list[int] = []
    while text:
        size = 2 if text.startswith("ab") else 1
        found.append(1000 if size == 2 else ord(text[0]))
        text = text[size:]
    return found


def test_white_space_at_the_seam_belongs_to_the_continuation() -> None:
    assert encode_pair(words, "x  ", "y") == (words("x"), words("  y"))
    assert encode_pair(words, "", "y") == ([], words("y"))


def test_a_token_over_the_seam_is_cut_where_the_context_ends() -> None:
    prompt, target = encode_pair(words, "xa", "bc")
    assert (prompt, target) == ([ord("x"), 1000], [ord("c")])
    assert encode_pair(words, "xa", "b") == (words("xa"), words("b"))


def test_prompts_are_cut_on_the_left() -> None:
    assert passage([1, 2, 3, 4], [5, 6], 4) == Passage((3, 4, 5, 6), 2, 4)
    assert passage([1, 2, 3, 4], [5, 6], 4, end=0) == Passage((4, 5, 6, 0), 1, 3)
    assert passage([1], [5, 6], 2) == Passage((5, 6), 0, 2)
    with pytest.raises(QdcError, match="an answer has 3 tokens, the model takes 1 to 2"):
        passage([1], [4, 5, 6], 2)
    with pytest.raises(QdcError, match="an answer has 0 tokens"):
        passage([1], [], 2)


@given(st.integers(0, 10), st.integers(1, 10), st.integers(1, 5))
def test_blocks_cover_the_answer(front: int, size: int, block: int) -> None:
    whole = Passage(tuple(range(front + size)), front, front + size)
    found = list(pieces(whole, block))
    assert [p for part in found for p in range(part.start, part.end)] == list(range(*whole[1:]))
    for part in found:
        assert part.tokens == whole.tokens[: part.end]
        assert part.start // block == (part.end - 1) // block
    assert list(pieces(whole, None)) == [whole]


@given(st.integers(0, 30), st.integers(2, 8), st.booleans())
def test_rolling_windows_score_every_token_once(size: int, longest: int, prefixed: bool) -> None:
    tokens, prefix = list(range(size)), [99] if prefixed else []
    found = list(rolling(tokens, longest, prefix))
    assert [token for _, target in found for token in target] == tokens
    for number, (prompt, target) in enumerate(found):
        assert len(target) >= 1
        assert len(prompt) + len(target) <= longest
        assert prompt == (prefix if number == 0 else tokens[target[0] - len(prompt) : target[0]])
    if len(found) > 1:
        assert sum(map(len, found[-1])) == min(longest, size)
