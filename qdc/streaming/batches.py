"""Token ids in batches, and their segments: which of the tokens of a row see each other.

A row may hold several documents that are not to see each other, or one document and padding. A
number for each position, its segment, says so: attention stays within a segment, and positions of
the segment ``PADDING`` are no data. They are computed, since a batch has one length, and left out
of everything that is counted, averaged or fitted.

Tokens may weigh unlike each other in what is averaged; their weights go with them. So do the places
whose tokens are noise, where noise is no token of its own that would tell.
"""

from collections.abc import Iterator, Sequence
from typing import overload

import torch
from torch import Tensor

PADDING = -1
"""The segment of positions that hold no data."""


class Batches(Sequence[Tensor]):
    """Token ids ``i64[b, length]`` by batch; a slice takes its segments and weights along."""

    def __init__(
        self,
        tokens: Sequence[Tensor],
        segments: Sequence[Tensor] | None = None,
        weights: Sequence[Tensor] | None = None,
        noised: Sequence[Tensor] | None = None,
    ) -> None:
        """Take batches.

        Args:
            tokens: ``i64[b, length]`` each.
            segments: of the same shapes; None if all positions of a row see each other.
            weights: ``f32[b, length]`` each, what a token counts in statistics; None if all count
                the same.
            noised: ``bool[b, length]`` each, where random tokens stand in for those of the text;
                None if there are none, or if the mask token says where.
        """
        self.tokens = tuple(tokens)
        self.segments = None if segments is None else tuple(segments)
        self.weights = None if weights is None else tuple(weights)
        self.noised = None if noised is None else tuple(noised)

    @classmethod
    def of(cls, batches: Sequence[Tensor]) -> "Batches":
        """Batches as they are; plain ones have no segments."""
        return batches if isinstance(batches, Batches) else cls(batches)

    @classmethod
    def split(
        cls,
        tokens: Tensor,
        segments: Tensor | None,
        size: int,
        weights: Tensor | None = None,
        noised: Tensor | None = None,
    ) -> "Batches":
        """Cut ``i64[samples, length]`` into batches; the last one may be smaller."""
        given = (segments, weights, noised)
        beside = (None if t is None else torch.split(t, size) for t in given)
        return cls(torch.split(tokens, size), *beside)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> "Batches": ...
    def __getitem__(self, place: int | slice) -> "Tensor | Batches":
        """The tokens of one batch, or some batches."""
        if isinstance(place, slice):
            beside = (None if t is None else t[place] for t in self.beside)
            return Batches(self.tokens[place], *beside)
        return self.tokens[place]

    def __iter__(self) -> Iterator[Tensor]:
        """The tokens, batch by batch."""
        return iter(self.tokens)

    @property
    def beside(self) -> tuple[tuple[Tensor, ...] | None, ...]:
        """Segments, weights and noise, each by batch or None."""
        return self.segments, self.weights, self.noised

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.tokens)

    def __add__(self, other: "Batches") -> "Batches":
        """These batches, then others of the same kind."""
        beside = []
        for mine, others in zip(self.beside, other.beside, strict=True):
            assert (mine is None) == (others is None), "all batches have them, or none has"
            beside.append(None if mine is None or others is None else (*mine, *others))
        return Batches((*self.tokens, *other.tokens), *beside)


class Sight:
    """What the positions of one batch see of each other."""

    def __init__(self, segments: Tensor) -> None:
        """Take segments ``i64[b, length]``, on the device of the attention."""
        self.segments = segments
        self._same: Tensor | None = None

    @property
    def same(self) -> Tensor:
        """``bool[b, 1, length, length]``: who is in one segment with whom.

        Padding sees padding, which nobody reads, so that no row of attention is empty.
        """
        if self._same is None:
            self._same = (self.segments[:, :, None] == self.segments[:, None, :])[:, None]
        return self._same

    def data(self, rows: Tensor) -> Tensor:
        """Of places ``i64[n]`` in ``b * length`` those that are no padding."""
        return rows[self.segments.flatten()[rows] != PADDING]
