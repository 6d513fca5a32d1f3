"""Final text only grows, is the same however it arrives, and never shows half of anything."""

from hypothesis import given
from hypothesis import strategies as st

from qdc.serve.finaltext import FinalText, first_stop

TEXTS = st.text(st.sampled_from("ab日é🙂"), max_size=12)
STOPS = st.lists(st.text(st.sampled_from("ab日"), min_size=1, max_size=4), max_size=3)


def by_bytes(tokens: list[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(tokens).decode("utf-8", errors="replace")


def slow(text: str, stops: list[str]) -> tuple[str, int, bool]:
    """Byte by byte: the first moment at which a stop string is there."""
    data = text.encode()
    for n in range(len(data) + 1):
        so_far = data[:n].decode("utf-8", errors="ignore")
        places = [so_far.find(stop) for stop in stops if so_far.endswith(stop)]
        if places:
            return so_far[: min(places)], n, True
    return text, len(data), False


@given(TEXTS, STOPS, st.lists(st.integers(0, 50), max_size=6))
def test_any_portions_give_the_same(text: str, stops: list[str], places: list[int]) -> None:
    tokens = list(text.encode())
    final, shown = FinalText(by_bytes, stops), [""]
    for place in sorted(place % (len(tokens) + 1) for place in places):
        final.feed(tokens[:place])
        shown.append(final.text)
    final.feed(tokens, last=True)
    assert (final.text, final.count, final.stopped) == slow(text, stops)
    for before, after in zip(shown, [*shown[1:], final.text], strict=True):
        assert after.startswith(before)
    assert all("\ufffd" not in part for part in shown)


def test_bytes_that_are_no_text_are_shown_at_the_end() -> None:
    final = FinalText(by_bytes)
    final.feed([97, 0xE6, 0x97])
    assert final.text == "a"
    final.feed([97, 0xE6, 0x97], last=True)
    assert final.text == "a\ufffd"


def test_the_stop_that_is_complete_first_counts() -> None:
    assert first_stop("xabcde", ["abcde", "bcd"]) == 2
    assert first_stop("xab", ["abc"]) is None
