"""Clean samples for calibration: windows of joined documents, or random ones within long documents.

Joined documents are one circle, on which every token is as likely to be drawn as any other. Windows
lie an even way apart, turned by chance together, and each moved by chance as far as it does not
reach the next one: they do not overlap unless the text is smaller than all of them.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.numerics.random_numbers import below, permutation
from qdc.text.joined import Joined, Taken, is_small, no_token
from qdc.units import Progress


def draw_joined(joined: Joined, samples: int, length: int, seed: int) -> Taken:
    """Draw ``i64[samples, length]`` token ids of joined documents, in random order.

    Raises InvalidCalibration if the documents together do not fill a window.
    """
    _check(samples, length)
    if joined.tokens() < length:
        raise InvalidCalibration(
            f"found {joined.count:,} documents of {joined.tokens():,} tokens in all, need at least "
            f"the {length:,} tokens of a window",
            help="give more text with --calibration, or a smaller length",
        )
    room = max(0, joined.size // samples - joined.places(length))
    [turned] = below(joined.size, 1, "turn of the windows", seed)
    moved = below(room + 1, samples, "place of a window", seed)
    starts = [
        (turned + number * joined.size // samples + moved[number]) % joined.size
        for number in permutation(samples, "order of the windows", seed)
    ]
    return joined.take(starts, length)


class Within(NamedTuple):
    """Windows that lie within documents, and what was looked at."""

    windows: Tensor
    """``i64[samples, length]`` token ids."""
    owners: Tensor
    """``i64[samples]``: the document of each."""
    looked_at: int
    """Documents that were tokenized."""
    too_short: int
    """Of these."""
    tokens: int
    """Of these."""
    characters: int
    """Of these."""


def draw_within(
    documents: Sequence[str],
    encode: Callable[[str], list[int]],
    samples: int,
    length: int,
    seed: int,
    progress: Progress | None = None,
) -> Within:
    """Draw ``i64[samples, length]`` token ids: a uniform document, then a uniform window of it.

    Only documents with more than ``length`` tokens count. Too short ones are rejected as they are
    drawn, which leaves the choice uniform over the others; a document is tokenised when first drawn
    and never again, all of them at once if the text is small. Source: calibration text of the
    release (specification 1.4), whose generator is not ours; ours is torch's CPU generator. Raises
    InvalidCalibration if nothing is long enough.
    """
    _check(samples, length)
    generator = torch.Generator().manual_seed(seed)
    places, left = np.arange(len(documents)), len(documents)
    known = _Known(documents, encode, length)
    windows: list[Tensor] = []
    owners: list[int] = []
    while len(windows) < samples:
        if not left:
            if not known.longest and any(document.strip() for document in documents):
                raise no_token(len(documents), sum(map(len, documents)))
            raise _too_short(len(documents), known.longest, length)
        drawn = _below(left, generator)
        place = int(places[drawn])
        tokens = known.get(place)
        if tokens is None:
            left -= 1
            places[drawn] = places[left]
            continue
        offset = _below(len(tokens) - length + 1, generator)
        windows.append(tokens[offset : offset + length])
        owners.append(place)
        if progress is not None:
            progress(len(windows), samples)
    return Within(torch.stack(windows), torch.tensor(owners), *known.counts())


class _Known:
    """The tokens of documents that were looked at."""

    def __init__(
        self, documents: Sequence[str], encode: Callable[[str], list[int]], length: int
    ) -> None:
        self.documents, self.encode, self.length = documents, encode, length
        self.longest = self.tokens = self.characters = self.too_short = 0
        self._found: dict[int, Tensor | None] = {}
        if is_small(documents):
            for place in range(len(documents)):
                self.get(place)

    def get(self, place: int) -> Tensor | None:
        """Tokens of a document; None if it is too short."""
        if place not in self._found:
            document = self.documents[place]
            tokens = self.encode(document)
            self.tokens += len(tokens)
            self.characters += len(document)
            self._found[place] = None
            if len(tokens) > self.length:
                self._found[place] = torch.tensor(tokens, dtype=torch.int64)
            else:
                self.longest = max(self.longest, len(tokens))
                self.too_short += 1
        return self._found[place]

    def counts(self) -> tuple[int, int, int, int]:
        return len(self._found), self.too_short, self.tokens, self.characters


def _check(samples: int, length: int) -> None:
    if samples < 1 or length < 1:
        raise InvalidCalibration(
            f"found {samples} samples of {length} tokens, need at least 1 of 1",
            help="raise the number of samples or their length",
        )


def draw_rows(rows: Tensor, samples: int, length: int, seed: int) -> Tensor:
    """Draw ``i64[samples, length]`` from rows of ids ``i64[n, longest]``, each as often as another.

    Of longer rows a uniform window. Raises InvalidCalibration if the rows are shorter.
    """
    count, longest = rows.shape
    if longest < length:
        raise InvalidCalibration(
            f"found rows of {longest} token ids, need {length} for a sample",
            help=f"give longer rows, or length={longest}",
        )
    generator = torch.Generator().manual_seed(seed)
    rounds = [torch.randperm(count, generator=generator) for _ in range(-(-samples // count))]
    windows = []
    for place in torch.cat(rounds)[:samples].tolist():
        offset = _below(longest - length + 1, generator)
        windows.append(rows[place, offset : offset + length])
    return torch.stack(windows)


def _below(bound: int, generator: torch.Generator) -> int:
    return int(torch.randint(bound, (), generator=generator))


def _too_short(documents: int, longest: int, length: int) -> InvalidCalibration:
    return InvalidCalibration(
        f"found {documents} documents, the longest of {longest} tokens, "
        f"need one of at least {length + 1} tokens",
        help="take pack=documents, which joins them, or give longer text with --calibration, "
        "or a smaller length",
    )
