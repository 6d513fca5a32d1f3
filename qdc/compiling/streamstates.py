"""Calibration streams on their way back from a journal: check what it names, and take it over.

All of it is untrusted. Where files of a stream's values are damaged, the stream goes its old way
again, with the weights that the shards have.
"""

import math
from functools import partial as bound

import torch
from torch import Tensor

from qdc.artifact.journal import Entry, File, StreamState, damaged_journal
from qdc.artifact.lockedfolder import LockedFolder
from qdc.compiling.savepoints import Batch, read_batch, read_samples
from qdc.streaming.batches import Batches
from qdc.streaming.trail import Trail
from qdc.streaming.workspace import Workspace


class StreamStates:
    """Puts the streams of a workspace where a journal says that they stood."""

    def __init__(self, workspace: Workspace, partial: LockedFolder) -> None:
        """Take nothing over yet.

        Args:
            workspace: of a compile that has done nothing yet.
            partial: the folder of the compile; the streams' values are in its folder ``kept``.
        """
        self.workspace, self.folder, self.kept = workspace, partial.folder, partial.kept
        self.graph = workspace.program.graph
        self._nodes = sum(1 for _ in self.graph)

    def follow(self, entry: Entry) -> None:
        """Let streams go the way that they had gone when a step ended, as soon as they are made.

        Raises ``InvalidJournal`` for a way that leaves the model.
        """
        for stream in entry.streams:
            self._check_way(stream)
        self.workspace.trails.update({(s.place, s.original): _trail(s) for s in entry.streams})

    def restore(self, entry: Entry) -> None:
        """Stand where the streams stood when a step ended, with their values where they are whole.

        Raises ``InvalidJournal`` for values that are not those of the model.
        """
        for stream in entry.streams:
            self._check_way(stream)
            if stream.samples is not None:
                self._take_part(stream, stream.samples)
            elif stream.batches and all(file.is_whole(self.kept) for file in stream.batches):
                self._take_whole(stream)
            else:
                self.workspace.trails[stream.place, stream.original] = _trail(stream)

    def _take_whole(self, stream: StreamState) -> None:
        """Go on with all batches."""
        batches, apart, weights, noised, kept = [], [], [], [], []
        for file in stream.batches:
            batch = self._read(file)
            batches.append(batch.tokens)
            apart += [] if batch.segments is None else [batch.segments]
            weights += [] if batch.weights is None else [batch.weights]
            noised += [] if batch.noised is None else [batch.noised]
            kept.append(self.workspace.states.hold(batch.values))
        for what, some in (("segments", apart), ("weights", weights), ("noise", noised)):
            if some and len(some) != len(batches):
                why = f"some batches of a calibration stream have {what}, some none"
                raise damaged_journal(self.folder, why)
        make = bound(Batches, batches, apart or None, weights or None, noised or None)
        made = self.workspace.stream((stream.place, stream.original), make)
        made.take_over(_trail(stream), kept)

    def _take_part(self, stream: StreamState, samples: File) -> None:
        """Go on with this process's part of the batches."""
        whole = read_samples(self.kept / samples.name)
        beside = (some or [None] * len(whole) for some in whole.beside)
        for tokens, apart, weights, noised in zip(whole, *beside, strict=True):
            self._check_batch(samples.name, Batch(tokens, apart, weights, noised, {}))
        key = stream.place, stream.original
        made = self.workspace.stream(key, lambda: whole, split=True)
        kept = []
        for file, mine in zip(stream.batches, made.batches(), strict=True):
            batch = self._read(file)
            if not torch.equal(batch.tokens, mine):
                why = f"the states in {file.name} are those of other samples"
                raise damaged_journal(self.folder, why)
            kept.append(self.workspace.states.hold(batch.values))
        made.take_over(_trail(stream), kept)

    def _read(self, file: File) -> Batch:
        batch = read_batch(self.kept / file.name)
        self._check_batch(file.name, batch)
        return batch

    def _check_way(self, stream: StreamState) -> None:
        """A way is untrusted, too: it must stay inside the model."""
        places = (*stream.stops, stream.left)
        if not all(0 <= place <= self._nodes for place in places):
            raise damaged_journal(self.folder, "a calibration stream has left the model")

    def _check_batch(self, name: str, batch: Batch) -> None:
        """A batch is untrusted: what is computed with must have the shapes of the graph."""
        tokens, segments, weights, noised, values = batch
        good = tokens.dtype == torch.int64 and tokens.ndim == 2 and bool(tokens.numel())
        good = good and int(tokens.min()) >= 0 and int(tokens.max()) < self.graph.model.vocabulary
        if good and segments is not None:
            good = segments.dtype == torch.int64 and segments.shape == tokens.shape
        if good and weights is not None:
            good = weights.dtype == torch.float32 and weights.shape == tokens.shape
            good = good and bool(((weights >= 0) & weights.isfinite()).all())
        if good and noised is not None:
            good = noised.dtype == torch.bool and noised.shape == tokens.shape
        for node, value in values.items():
            good = good and node in self.graph
            good = good and tuple(value.shape) == self._shape(node, tokens)
        if not good:
            raise damaged_journal(self.folder, f"the states in {name} are not those of this model")

    def _shape(self, node: str, tokens: Tensor) -> tuple[int, ...]:
        sizes = dict(zip("BL", tokens.shape, strict=True))
        return tuple(
            math.prod(sizes.get(name, 0) for name in size.split("*"))
            if isinstance(size, str)
            else size
            for size in self.graph[node].type.shape
        )


def _trail(stream: StreamState) -> Trail:
    return Trail(stream.stops, stream.left, stream.calls, stream.routed, stream.most)
