"""What is scored: a sequence of tokens, and which of them are the answer."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from qdc.errors import QdcError

Encode = Callable[[str], list[int]]


class Passage(NamedTuple):
    """Tokens of which ``start:end`` are scored; those in front are given, those behind visible."""

    tokens: tuple[int, ...]
    start: int
    end: int

    @property
    def size(self) -> int:
        """Number of scored tokens."""
        return self.end - self.start


def encode_pair(encode: Encode, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Tokens of a context and of what follows it.

    Both are encoded as one text, so that a word is cut as the model knows it, and white space at
    the end of the context belongs to the continuation. Where a token covers the seam, its place
    in the encoding of the context alone decides. Source: the harness's own pairs.
    """
    stripped = context.rstrip()
    continuation = context[len(stripped) :] + continuation
    front = encode(stripped)
    whole = encode(stripped + continuation)
    if len(whole) <= len(front):
        return front, encode(continuation)
    return whole[: len(front)], whole[len(front) :]


def passage(
    prompt: Sequence[int], target: Sequence[int], longest: int, end: int | None = None
) -> Passage:
    """A prompt and its target, cut on the left to ``longest`` tokens.

    ``end`` is put behind the target and not scored. Raises QdcError if the target alone is too
    long.
    """
    behind = () if end is None else (end,)
    room = longest - len(target) - len(behind)
    if room < 0 or not target:
        raise QdcError(
            f"an answer has {len(target)} tokens, the model takes 1 to {longest - len(behind)}",
            help="leave out tasks with such answers",
        )
    kept = tuple(prompt[max(0, len(prompt) - room) :])
    return Passage((*kept, *target, *behind), len(kept), len(kept) + len(target))


def pieces(whole: Passage, block: int | None) -> Iterator[Passage]:
    """The parts of a passage that a model predicts at a time.

    A block-causal model was trained on blocks behind clean ones and sees nothing later, so that
    the log-likelihood is a sum over blocks: each is scored on its own, behind the ones before.
    """
    if block is None:
        yield whole
        return
    start = whole.start
    while start < whole.end:
        end = min(whole.end, (start // block + 1) * block)
        yield Passage(whole.tokens[:end], start, end)
        start = end


def rolling(
    tokens: Sequence[int], longest: int, prefix: Sequence[int] = ()
) -> Iterator[tuple[list[int], list[int]]]:
    """Cut a text into prompts and targets that score every token once.

    Windows do not overlap; the last one is filled up with what stands in front of it. The first
    one begins with ``prefix``.
    """
    room = longest - len(prefix)
    if tokens:
        yield list(prefix), list(tokens[:room])
    for start in range(room, len(tokens), longest):
        end = min(len(tokens), start + longest)
        yield list(tokens[max(0, end - longest) : start]), list(tokens[start:end])
