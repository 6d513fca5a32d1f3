"""What of an answer may be shown for good, while places behind it are still open.

Tokens unmask in any order. Final is the text in front of the first open place, less what a further
token could still change: the beginning of a character of several bytes, and of a stop string.
"""

from collections.abc import Callable, Sequence

INCOMPLETE = "\ufffd"
"""What tokenizers write for bytes that are no character, such as the first half of one."""


class FinalText:
    """The growing beginning of one answer. ``text`` only ever gets longer."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        """Begin with nothing; an answer ends in front of the first of ``stops`` that is complete.

        ``decode`` must give the beginning of a text for the beginning of its tokens, up to
        ``INCOMPLETE`` at its end.
        """
        self._decode, self._stops = decode, tuple(stops)
        self.text = ""
        self.count = 0
        """Tokens that ``text`` and its stop string were read from."""
        self.stopped = False
        """A stop string was found."""

    def feed(self, tokens: list[int], *, last: bool = False) -> None:
        """Take the tokens in front of the first open place, all of them each time.

        With ``last`` nothing follows, so nothing is held back.
        """
        if self.stopped or (len(tokens) == self.count and not last):
            return
        seen, self.count = self.count, len(tokens)
        whole = self._decode(tokens)
        cut = first_stop(whole, self._stops)
        if cut is not None:
            self.stopped = True
            self.count = next(
                n
                for n in range(seen, len(tokens) + 1)
                if n == len(tokens) or first_stop(self._decode(tokens[:n]), self._stops) is not None
            )
            whole = whole[:cut]
        elif not last:
            whole = whole.rstrip(INCOMPLETE)
            whole = whole[: len(whole) - _begun(whole, self._stops)]
        self.text += whole[len(self.text) :]


def first_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the stop string begins that is complete first, if there is one.

    By this rule it makes no difference in what portions the text arrives.
    """
    found = [(text.find(stop), len(stop)) for stop in stops]
    ends = [(place + length, place) for place, length in found if place >= 0]
    return min(ends)[1] if ends else None


def _begun(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of ``text`` that a stop string begins with."""
    return max(
        (n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0
    )
