"""Clean samples of one document each: cut at the window's end, padded behind its last token.

For text whose documents stand alone and are short. Documents come in random order, and in another
one when all have been used.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.streaming.batches import PADDING
from qdc.text.joined import is_small, no_token, stored
from qdc.text.stored import Documents
from qdc.text.tokenizer import Encoder

LONG = 32
"""Characters (bytes of one large file) for each token of a window, beyond which a document is not
read: it gives more tokens than the window holds, or is read as a whole after all."""
ENOUGH = 64
"""Tokens behind the window's end that must have been found in the beginning of such a document:
where the text is cut, its last tokens may be others than in the whole."""


class Padded(NamedTuple):
    """Windows of one document each, and what was looked at."""

    windows: Tensor
    """``i64[samples, length]`` token ids."""
    segments: Tensor
    """``i64[samples, length]``: 0 where the document is, ``PADDING`` behind it."""
    owners: tuple[int, ...]
    """The document of each window."""
    looked_at: int
    """Documents that were tokenized."""
    empty: int
    """Of these, without a token; they are left out."""
    cut: int
    """Of the documents in windows, those that are longer."""
    tokens: int
    """Of those looked at; of a long document only those that were read."""
    characters: int
    """The same."""


def draw_padded(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    samples: int,
    length: int,
    seed: int,
    fill: int,
) -> Padded:
    """Draw documents without replacement, in a random order, then in another one.

    Args:
        documents: the text.
        encode: from text to token ids; each document gets what an ``Encoder`` puts around it.
        samples: windows to fill.
        length: tokens of a window.
        seed: of the orders.
        fill: the token that stands behind the end of a document.

    Raises:
        InvalidCalibration: no document has a token.
    """
    if samples < 1 or length < 1:
        raise InvalidCalibration(
            f"found {samples} samples of {length} tokens, need at least 1 of 1",
            help="raise the number of samples or their length",
        )
    read = _Read(stored(documents), encode, length)
    if is_small(documents):
        for place in range(len(documents)):
            read.get(place)
    rows: list[list[int]] = []
    owners: list[int] = []
    for place in _orders(len(documents), seed):
        if read.all_empty:
            raise no_token(len(documents), stored(documents).characters)
        ids = read.get(place)
        if ids:
            rows.append(ids)
            owners.append(place)
        if len(rows) == samples:
            break
    windows, segments = pad(rows, length, fill)
    cut = sum(read.is_longer[place] for place in set(owners))
    return Padded(
        windows, segments, tuple(owners), len(read.found), read.empty, cut, read.tokens,
        read.characters,
    )  # fmt: skip


def pad(rows: Sequence[Sequence[int]], length: int, fill: int) -> tuple[Tensor, Tensor]:
    """Fill rows of at most ``length`` tokens up.

    Returns:
        Token ids ``i64[rows, length]``, and segments of that shape: 0, behind a row ``PADDING``.
    """
    windows = torch.full((len(rows), length), fill)
    segments = torch.full_like(windows, PADDING)
    for window, segment, row in zip(windows, segments, rows, strict=True):
        window[: len(row)] = torch.tensor(row, dtype=torch.int64)
        segment[: len(row)] = 0
    return windows, segments


def filling(encode: Callable[[str], list[int]], vocabulary: int, mask: int | None) -> int:
    """The token to fill up with: the tokenizer's for it, else the one that ends a text, else any.

    What it is does not matter to any statistic, but the mask token would be taken for a mask.
    """
    found: list[int | None] = []
    if isinstance(encode, Encoder):
        found = [encode.tokenizer.pad_token_id, encode.tokenizer.eos_token_id]
    usable = (i for i in (*found, 0, 1) if i is not None and i != mask and i < vocabulary)
    return next(usable)


class _Read:
    """The beginnings of documents that were looked at."""

    def __init__(
        self, documents: Documents, encode: Callable[[str], list[int]], length: int
    ) -> None:
        self.documents, self.length = documents, length
        self.encode = encode.document if isinstance(encode, Encoder) else encode
        self.around = sum(map(len, encode.surround)) if isinstance(encode, Encoder) else 0
        self.found: dict[int, list[int]] = {}
        self.is_longer: dict[int, bool] = {}
        self.tokens = self.characters = self.empty = 0

    @property
    def all_empty(self) -> bool:
        """Whether every document was looked at, and none has a token."""
        return self.empty == len(self.documents)

    def get(self, place: int) -> list[int]:
        """As many tokens of a document as a window holds; none of one that has no own token."""
        if place not in self.found:
            ids = self._tokens(place)
            if len(ids) <= self.around:
                ids = []
            self.empty += not ids
            self.is_longer[place] = len(ids) > self.length
            self.found[place] = ids[: self.length]
        return self.found[place]

    def _tokens(self, place: int) -> list[int]:
        most = LONG * self.length
        before = int(self.documents.ends[place - 1]) if place else 0
        size = int(self.documents.ends[place]) - before
        text = self.documents.part(place, 0, min(most, size))
        ids = self.encode(text)
        if most < size and len(ids) < self.length + ENOUGH:
            text = self.documents[place]
            ids = self.encode(text)
        self.tokens += len(ids)
        self.characters += len(text)
        return ids


def _orders(count: int, seed: int) -> Iterator[int]:
    """Yield the places 0 .. ``count`` - 1 in random order, round after round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from map(int, torch.randperm(count, generator=generator).numpy())
