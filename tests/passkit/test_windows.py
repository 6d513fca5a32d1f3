"""Calibration windows: contiguous, evenly drawn, from long documents alone."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidCalibration
from qdc.passkit.windows import draw_within


def encode(text: str) -> list[int]:
    """One token a character."""
    return [ord(character) for character in text]


def document(start: int, length: int) -> str:
    """Give consecutive characters, so that a window tells where it comes from."""
    return "".join(chr(start + place) for place in range(length))


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    length=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)
def test_windows_lie_in_long_documents(lengths: list[int], length: int, seed: int) -> None:
    """Each window is a stretch of one document with more tokens than the window."""
    documents = [document(1000 * (n + 1), size) for n, size in enumerate(lengths)]
    if max(lengths) <= length:
        with pytest.raises(InvalidCalibration):
            draw_within(documents, encode, 5, length, seed)
        return
    windows = draw_within(documents, encode, 5, length, seed).windows
    assert windows.shape == (5, length)
    assert windows.dtype == torch.int64
    for window in windows.tolist():
        text = documents[window[0] // 1000 - 1]
        assert "".join(map(chr, window)) in text
        assert len(text) > length
    assert torch.equal(windows, draw_within(documents, encode, 5, length, seed).windows)


def test_uniform_over_documents_and_offsets() -> None:
    """Long documents count no more than shorter ones; each offset, both ends too, is as likely."""
    documents = [document(100, 3), document(1000, 6), document(2000, 24), document(3000, 5)]
    firsts = draw_within(documents, encode, 2000, 5, seed=3).windows[:, 0].tolist()
    owners = Counter(first // 1000 for first in firsts)
    assert set(owners) == {1, 2}
    assert abs(owners[1] - 1000) < 100
    offsets = Counter(first - 2000 for first in firsts if first >= 2000)
    assert set(offsets) == set(range(20))
    assert max(offsets.values()) < 2.5 * min(offsets.values())


def test_seeds_differ() -> None:
    """Another seed draws other windows."""
    documents = [document(100, 500)]
    assert not torch.equal(
        draw_within(documents, encode, 4, 5, 0).windows,
        draw_within(documents, encode, 4, 5, 1).windows,
    )


def test_each_document_is_tokenised_once() -> None:
    """Tokenising is slow: no document goes through it twice, and progress is told."""
    seen: Counter[str] = Counter()
    told: list[tuple[int, int]] = []

    def counted(text: str) -> list[int]:
        seen[text] += 1
        return encode(text)

    documents = [document(100 * n, 4 * n) for n in range(1, 9)]
    draw_within(documents, counted, 50, 9, 0, progress=lambda *step: told.append(step))
    assert set(seen.values()) == {1}
    assert told == [(step, 50) for step in range(1, 51)]


def test_too_short() -> None:
    """The error says what was there, what is needed and which option helps."""
    with pytest.raises(InvalidCalibration) as caught:
        draw_within(["abc", "abcdefgh", ""], encode, 2, 8, 0)
    assert str(caught.value) == (
        "error[QDC303] found 3 documents, the longest of 8 tokens, need one of at least 9 tokens\n"
        "  help  give longer text with --calibration, or a smaller length"
    )
    with pytest.raises(InvalidCalibration, match="found 0 documents"):
        draw_within([], encode, 2, 8, 0)


@pytest.mark.parametrize(("samples", "length"), [(0, 4), (4, 0), (-1, 4)])
def test_senseless_sizes(samples: int, length: int) -> None:
    """No samples, or samples of nothing, are refused."""
    with pytest.raises(InvalidCalibration, match=f"found {samples} samples of {length} tokens"):
        draw_within(["abcdefgh"], encode, samples, length, 0)
