"""What a calibration stream moves: token ids, what they see of each other, what they weigh."""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdc.streaming.batches import PADDING, Batches


class StreamSamples:
    """The samples of a stream, those that other processes move included; they never change."""

    def __init__(self, batches: Batches, part: slice, mask: int | None) -> None:
        """Take samples.

        Args:
            batches: ``i64[b, length]`` token ids, of all processes together.
            part: the batches that this process moves; others move the rest.
            mask: the id of the mask token; None if the model has none.
        """
        self.tokens = _joined(batches.tokens)
        """``i64[samples, length]``: what was put in, in all processes together."""
        self.segments = None if batches.segments is None else _joined(batches.segments)
        """``i64[samples, length]``: which positions of a row see each other; None if all do."""
        self.token_weights = None if batches.weights is None else _joined(batches.weights)
        """``f32[samples, length]``: what each token counts in statistics; None if all the same."""
        self.noised = None if batches.noised is None else _joined(batches.noised)
        """``bool[samples, length]``: where random tokens stand in for the text's; None if the mask
        token says it."""
        self.padded = self.segments is not None and bool((self.segments == PADDING).any())
        """Whether some of the positions are no data."""
        self._rows, self._part, self._mask = [len(batch) for batch in batches], part, mask
        self._segments = None if self.segments is None else self.rows(self.segments)
        self._masked = self.rows(self.masked)
        data = self.rows(self.data)
        self._places = [p.flatten().nonzero()[:, 0] if self.padded else None for p in data]

    @property
    def masked(self) -> Tensor:
        """``bool[samples, length]``: which tokens are masked or noise; padding never is."""
        if self.noised is not None:
            return self.noised & self.data
        if self._mask is None:
            return torch.zeros_like(self.tokens, dtype=torch.bool)
        return (self.tokens == self._mask) & self.data

    @property
    def data(self) -> Tensor:
        """``bool[samples, length]``: which of the positions are no padding."""
        if self.segments is None:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        return self.segments != PADDING

    @property
    def counting(self) -> Tensor:
        """``bool[samples, length]``: which of the data have a weight above 0 in statistics."""
        return self.data if self.token_weights is None else self.data & (self.token_weights > 0)

    @property
    def split(self) -> bool:
        """Whether other processes move some of the batches."""
        return self._part != slice(None)

    def batches(self) -> Batches:
        """The samples that are moved here, ``i64[b, length]`` each, as they were put in."""
        return self.samples()[self._part]

    def samples(self) -> Batches:
        """The samples of all processes, as they were put in."""
        beside = (
            None if t is None else torch.split(t, self._rows)
            for t in (self.segments, self.token_weights, self.noised)
        )
        return Batches(torch.split(self.tokens, self._rows), *beside)

    def rows(self, values: Tensor) -> list[Tensor]:
        """Of something with a row for each sample, the rows of each batch that is moved here."""
        return list(torch.split(values, self._rows))[self._part]

    def places(self) -> list[Tensor | None]:
        """Of each batch that is moved here the places of its data, ``i64[n]`` in b * length.

        None where all of them are data.
        """
        return list(self._places)

    def segments_of(self, index: int) -> Tensor | None:
        """Segments ``i64[b, length]`` of a batch that is moved here, by its place among those."""
        return None if self._segments is None else self._segments[index]

    def _data_places(self, index: int) -> Tensor:
        """Places ``i64[n]`` of all data of a batch that is moved here."""
        places, count = self._places[index], self._rows[self._part][index]
        return torch.arange(count * self.tokens.shape[1]) if places is None else places


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """All parts below each other; those of a forecast hold no numbers.

    For them ``cat`` would import torch's compiler, which takes longer than most forecasts.
    """
    if not parts[0].is_meta:
        return torch.cat(tuple(parts))
    return parts[0].new_empty(sum(map(len, parts)), *parts[0].shape[1:])
