"""Samples of prompts and answers: whole records, one after the other, in windows of one length.

A sample begins with a record, further records follow, and the last is cut at the window's end; or
it holds one record alone, and padding. All prompts are visible, only answers are masked.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.streaming.batches import PADDING
from qdc.text.records import Dialogue

Turn = tuple[list[int], list[int]]
"""Tokens of a prompt and of its answer."""


class Counts(NamedTuple):
    """What was made of the records."""

    looked_at: int
    """Records that were tokenized."""
    tokens: int
    """Of these, of those with an answer."""
    used: int
    """Records that are in a window, wholly or in part."""
    cut: int
    """Of these: those that are longer than a window, or end behind one."""
    unanswered: int
    """Of those looked at, without an answer."""


class Answered(NamedTuple):
    """Windows of prompts and answers."""

    tokens: Tensor
    """``i64[samples, length]`` token ids."""
    answers: Tensor
    """``bool[samples, length]``: true in answers."""
    counts: Counts
    segments: Tensor
    """``i64[samples, length]``: the number of the record in its window; ``PADDING`` behind all."""


def draw_dialogues(
    dialogues: Sequence[Dialogue],
    encode: Callable[[Dialogue], Turn],
    samples: int,
    length: int,
    seed: int,
    fill: int | None = None,
) -> Answered:
    """Draw windows of records; one record each if there is a token ``fill`` to stand behind it.

    Records come in random order, and in another one when all have been used; those without an
    answer are left out. A record that is too long loses the start of its prompt, until its answer,
    or as much of it as half a window holds, fits in. Raises InvalidCalibration if the records do
    not give every sample one of its own, or do not fill a window that is not to be padded.
    """
    stream = _Stream(dialogues, encode, samples, length, seed, alone=fill is not None)
    behind = (0 if fill is None else fill, False, PADDING)
    windows = [stream.window() for _ in range(samples)]
    filled = [[*window, *[behind] * (length - len(window))] for window in windows]
    tokens, answers, segments = (
        torch.tensor([[place[part] for place in window] for window in filled]) for part in range(3)
    )
    return Answered(tokens, answers, stream.counts(), segments)


def fit(turn: Turn, length: int) -> Turn:
    """Cut a record to a window: the prompt on the left, then the answer on the right."""
    prompt, answer = turn
    kept = min(len(answer), max(length // 2, length - len(prompt)))
    room = length - kept
    return (prompt[-room:] if room else []), answer[:kept]


class _Stream:
    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        encode: Callable[[Dialogue], Turn],
        samples: int,
        length: int,
        seed: int,
        *,
        alone: bool,
    ) -> None:
        self.dialogues, self.encode, self.alone = dialogues, encode, alone
        self.samples, self.length = samples, length
        self.generator = torch.Generator().manual_seed(seed)
        self.records = self._records()
        self.sizes: dict[int, int] = {}
        """Tokens of the records that were looked at; 0 without an answer."""
        self.used, self.cut = set[int](), set[int]()

    def window(self) -> list[tuple[int, bool, int]]:
        """Tokens, whether each belongs to an answer, and the number of its record."""
        found: list[tuple[int, bool, int]] = []
        number = 0
        while len(found) < self.length and not (self.alone and found):
            place, (prompt, answer) = next(self.records)
            self.used.add(place)
            if len(found) + self.sizes[place] > self.length:
                self.cut.add(place)
            found += [(token, False, number) for token in prompt]
            found += [(token, True, number) for token in answer]
            number += 1
        return found[: self.length]

    def counts(self) -> Counts:
        """What the windows until now were made of."""
        unanswered = sum(not size for size in self.sizes.values())
        tokens = sum(self.sizes.values())
        return Counts(len(self.sizes), tokens, len(self.used), len(self.cut), unanswered)

    def _records(self) -> Iterator[tuple[int, Turn]]:
        """Yield records with an answer, and their places."""
        known: dict[int, Turn] = {}
        while True:
            usable = tokens = 0
            order = torch.randperm(len(self.dialogues), generator=self.generator)
            for place in map(int, order.numpy()):
                if place not in known:
                    whole = self.encode(self.dialogues[place])
                    self.sizes[place] = len(whole[0]) + len(whole[1]) if whole[1] else 0
                    known[place] = fit(whole, self.length)
                prompt, answer = known[place]
                if answer:
                    usable += 1
                    tokens += len(prompt) + len(answer)
                    yield place, known[place]
            self._check(usable, tokens)

    def _check(self, usable: int, tokens: int) -> None:
        """All records have been used and do not suffice: say so unless they may repeat."""
        if usable < self.samples or (tokens < self.length and not self.alone):
            raise InvalidCalibration(
                f"found {usable} records with an answer, {tokens} tokens in all, need "
                f"{self.samples} records, one a sample"
                f"{'' if self.alone else f', and {self.length} tokens'}",
                help="give more records with --calibration, or fewer or shorter samples",
            )
