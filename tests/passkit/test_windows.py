"""Calibration windows: of joined documents, all tokens alike; or within long documents."""

import hashlib
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidCalibration
from qdc.ir.facts import ModelFacts
from qdc.passkit.samples import draw_samples
from qdc.passkit.windows import draw_joined, draw_within
from qdc.text.joined import join
from qdc.text.source import TextSource, read_text
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import EMBEDDED


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
        "  help  take pack=documents, which joins them, or give longer text with --calibration, "
        "or a smaller length"
    )
    with pytest.raises(InvalidCalibration, match="found 0 documents"):
        draw_within([], encode, 2, 8, 0)


@pytest.mark.parametrize(("samples", "length"), [(0, 4), (4, 0), (-1, 4)])
def test_senseless_sizes(samples: int, length: int) -> None:
    """No samples, or samples of nothing, are refused."""
    with pytest.raises(InvalidCalibration, match=f"found {samples} samples of {length} tokens"):
        draw_within(["abcdefgh"], encode, samples, length, 0)


def test_the_drawing_within_documents_is_that_of_before() -> None:
    """Ids of the version that drew like this alone."""
    documents, encode = read_text(None).documents, encoder(load_tokenizer(EMBEDDED))
    windows = draw_within(documents, encode, 16, 32, 7).windows
    assert windows[:2, :8].tolist() == [
        [404, 473, 441, 27, 268, 580, 1175, 1294],
        [429, 1887, 326, 430, 1176, 343, 400, 1041],
    ]
    assert hashlib.sha256(windows.numpy().tobytes()).hexdigest() == (
        "2551906908dea9333c5514e8e7651d47c50674c398f23c833e9e3ca425c349fb"
    )


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=8),
    samples=st.integers(1, 12),
    length=st.integers(1, 20),
    seed=st.integers(0, 2**40),
)
def test_joined_windows_overlap_only_where_the_text_is_too_small(
    lengths: list[int], samples: int, length: int, seed: int
) -> None:
    """Each is a stretch of the circle; together they hold a token once, or all of them."""
    documents = [document(1000 * (n + 1), size) for n, size in enumerate(lengths)]
    circle = "".join(documents)
    joined = join(documents, encode)
    if len(circle) < length:
        with pytest.raises(InvalidCalibration, match=f"of {len(circle)} tokens in all, need at"):
            draw_joined(joined, samples, length, seed)
        return
    windows, owners = draw_joined(joined, samples, length, seed)
    assert windows.shape == owners.shape == (samples, length)
    for window, owner in zip(windows.tolist(), owners.tolist(), strict=True):
        assert "".join(map(chr, window)) in circle + circle
        assert [token // 1000 - 1 for token in window] == owner
    times = Counter(windows.flatten().tolist())
    assert max(times.values()) == 1 or len(circle) < samples * length
    if len(circle) <= samples * length and len(circle) // samples * samples == len(circle):
        assert len(times) == len(circle)
    again = draw_joined(joined, samples, length, seed)
    assert torch.equal(windows, again.windows)


def test_every_token_is_drawn_as_often() -> None:
    """Of short documents and long ones, at their beginnings and ends: 2000 seeds, 3 windows of 4.

    Each of 30 tokens is expected 800 times, with a standard deviation below 25.
    """
    documents = [document(1000 * (n + 1), size) for n, size in enumerate([1, 2, 12, 3, 12])]
    joined = join(documents, encode)
    times: Counter[int] = Counter()
    firsts: Counter[int] = Counter()
    for seed in range(2000):
        windows = draw_joined(joined, 3, 4, seed).windows
        times.update(windows.flatten().tolist())
        firsts.update(windows[:1, 0].tolist())
    assert len(times) == len(firsts) == 30
    assert all(700 < count < 900 for count in times.values())
    assert all(30 < count < 110 for count in firsts.values()), "67: the first sample is any too"


def test_short_documents_are_used() -> None:
    """1,911 documents of 100 to 129 tokens, and windows of 128: of 63 of them alone before."""
    sizes = [100 + number % 30 for number in range(1911)]
    documents = tuple(document(1000 + number, size) for number, size in enumerate(sizes))
    source = TextSource("short", "", documents)
    facts = ModelFacts(family="toy", mask_token_id=1, vocabulary=1 << 20, max_length=128)
    whole = -(-sum(sizes) // 128)
    use = draw_samples(source, encode, facts, whole, 128, 0, 0).use
    assert (use.pack, use.documents, use.used) == ("documents", 1911, 1911)
    assert (use.tokens, use.counted) == (sum(sizes), True)
    few = draw_samples(source, encode, facts, 4, 128, 0, 0).use
    assert 8 <= few.used <= 12
    [unused] = few.warnings
    assert unused == (
        f"{1911 - few.used:,} of 1,911 documents are in no window; "
        f"about {whole:,} windows hold all of the text; raise samples"
    )
    [alone] = few.notes
    assert alone.startswith("a document has about 114 tokens, less than a window")
    assert alone.endswith("pack=pad calibrates on each alone")
    more = draw_samples(source, encode, facts, whole * 2 // 5, 128, 0, 0).use
    assert more.warnings == ()
    assert "documents are in no window" in more.notes[0]
    within = draw_samples(source, encode, facts, 4, 128, 0, 0, "within").use
    assert (within.looked_at, within.unusable, within.used) == (1911, 1848, 4)
    assert within.warnings[0].startswith("1,848 of 1,911 documents are too short for pack=within")
    assert within.warnings[0].endswith("use pack=documents, or a smaller length")


def test_windows_that_overlap_are_said() -> None:
    source = TextSource("small", "", (document(1000, 30),))
    facts = ModelFacts(family="toy", mask_token_id=1, vocabulary=1 << 20, max_length=128)
    use = draw_samples(source, encode, facts, 40, 10, 0, 0).use
    assert (use.windows, use.distinct) == (40, 30)
    repeated, overlapping = use.warnings
    assert repeated.startswith("10 of 40 windows repeat others")
    assert "hold 400 tokens and the text 30: they overlap" in overlapping
