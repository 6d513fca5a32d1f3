"""What a running compile puts down at the end of each step, so that another process can go on.

Written in this order: the step's part of the artifact, the tensors that later passes read, the
graph, the values of the calibration streams, and then the journal that names them all. Files that
only an older journal names are removed afterwards. At any moment one complete journal is there.

Of several processes each has a journal, of its part of the batches; that of the first says which
step counts (``qdc.artifact.rankfolder``).
"""

import time
from collections.abc import Container, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qdc.artifact.journal import Entry, File, Journal, PassRecord, StreamState
from qdc.artifact.lockedfolder import LockedFolder
from qdc.artifact.rankfolder import RankFolder
from qdc.artifact.writer import ArtifactWriter
from qdc.compiling.instruments import Meter, Remarks
from qdc.compiling.runner import Runner
from qdc.disk import sync_folder, write_bytes, write_tensors
from qdc.errors import InvalidJournal
from qdc.ir.dump import to_bytes
from qdc.pipeline.traversal import Step
from qdc.streaming.batches import Batches
from qdc.streaming.stream import Stream
from qdc.streaming.workspace import Key, Workspace

TOKENS, SEGMENTS, WEIGHTS, NOISED = "tokens", "segments", "weights", "noised"
ROWS, HELD = "rows", "held."


class Savepoints:
    """Writes the journal of one compile and the files that it names."""

    def __init__(
        self,
        partial: LockedFolder,
        runner: Runner,
        writer: ArtifactWriter | None,
        observed: tuple[Meter, Remarks],
        identity: Mapping[str, str],
        started: float,
        run: str = "",
    ) -> None:
        """Begin where the folder's journal ends.

        Args:
            partial: the folder, locked.
            runner: of the compile; its tensors go to the folder ``kept``.
            writer: of the artifact; its files are in the folder ``artifact``. None in all processes
                but the first.
            observed: what the instruments have seen so far goes into the journal.
            identity: what the artifact's bytes depend on.
            started: when this process began, by ``time.perf_counter``.
            run: what the journals of several processes have in common.
        """
        self.partial, self.runner, self.writer = partial, runner, writer
        self.meter, self.remarks = observed
        self.identity, self.run = dict(identity), run
        self._started = started
        before = partial.journal
        self._before = 0.0 if before is None else before.seconds
        self.resumed = 0 if before is None else before.resumed + 1

    @property
    def workspace(self) -> Workspace:
        """The state of the compile."""
        return self.runner.workspace

    @property
    def seconds(self) -> float:
        """Time of the whole compile, earlier processes included."""
        return self._before + time.perf_counter() - self._started

    def save(self, step: Step) -> None:
        """Put down what a finished step leaves. Raises ``QdcError`` if the disk is full."""
        earlier = self.partial.journal.entries if self.partial.journal is not None else ()
        known = {file.name for entry in earlier for file in entry.written}
        written = [] if self.writer is None else self._written(self.writer, known)
        entry = Entry(
            step=step.name,
            written=tuple(written),
            tensors=tuple(map(File.of, self.runner.tensors_files(step))),
            graph=self._graph(step),
            streams=tuple(
                self._stream(step, key, stream) for key, stream in self.workspace.streams()
            ),
        )
        for folder in (*([] if self.writer is None else [self.writer.folder]), self.partial.kept):
            sync_folder(folder)
        self._commit(
            Journal(
                run=self.run,
                identity=self.identity,
                total=len(self.runner.traversal.steps),
                entries=(*self._thinned(earlier), entry),
                linear_calls=self.workspace.linear_calls,
                samples=self.workspace.samples,
                text=tuple(self.workspace.text),
                sampled=tuple(self.workspace.sampled),
                certainty=tuple(self.workspace.certainty),
                passes=tuple(
                    PassRecord(seconds=row.seconds, peak_bytes=row.peak_bytes, units=row.units)
                    for row in self.meter.measured
                ),
                remarks=self.remarks.lines(),
                seconds=self.seconds,
                resumed=self.resumed,
            )
        )

    def _commit(self, journal: Journal) -> None:
        """Let a journal count, in all processes once the first has noted it."""
        world = self.workspace.world
        if isinstance(self.partial, RankFolder):
            self.partial.prepare(journal)
        world.agree()  # all parts are on the disk
        if world.first:
            self.partial.save(journal)
        world.agree()  # the step counts
        if not world.first:
            self.partial.save(journal)

    @staticmethod
    def _written(writer: ArtifactWriter, known: Container[str]) -> list[File]:
        """Files of the artifact that no earlier entry names."""
        return [
            File(name=path.name, sha256=writer.digest(path.name))
            for path in sorted(writer.folder.iterdir())
            if path.name not in known
        ]

    def _thinned(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Earlier entries without what only the last needs: graphs inside a segment, values."""
        found = []
        for entry, step in zip(entries, self.runner.traversal.steps, strict=False):
            thin = {"batches": (), "samples": None}
            streams = tuple(s.model_copy(update=thin) for s in entry.streams)
            update = {"streams": streams, **({} if step.ends else {"graph": None})}
            found.append(entry.model_copy(update=update))
        return tuple(found)

    def _graph(self, step: Step) -> File:
        path = self.partial.kept / f"{step.number:05d}_graph.qdc"
        write_bytes(path, to_bytes(self.workspace.program.graph))
        return File.of(path)

    def _stream(self, step: Step, key: Key, stream: Stream) -> StreamState:
        place, original = key
        name = f"{step.number:05d}_stream_{place}{'_original' if original else ''}"
        files = []
        given = {WEIGHTS: stream.token_weights, NOISED: stream.noised}
        rows = {what: stream.rows(each) for what, each in given.items() if each is not None}
        for batch, (tokens, held) in enumerate(zip(stream.batches(), stream.kept, strict=True)):
            path, beside = self.partial.kept / f"{name}_{batch}.safetensors", {}
            if (apart := stream.segments_of(batch)) is not None:
                beside[SEGMENTS] = apart.contiguous()
            beside |= {what: each[batch].contiguous() for what, each in rows.items()}
            values = {HELD + key: held[key] for key in held}
            write_tensors(path, {TOKENS: tokens, **beside, **values})
            files.append(File.of(path))
        samples = None
        if stream.split and self.workspace.world.size > 1:
            path = self.partial.kept / f"{name}_samples.safetensors"
            write_tensors(path, _samples(stream))
            samples = File.of(path)
        trail = stream.trail
        return StreamState(
            place=place,
            original=original,
            stops=trail.stops,
            left=trail.left,
            calls=trail.calls,
            routed=trail.routed,
            batches=tuple(files),
            samples=samples,
            most=trail.most,
        )


def _samples(stream: Stream) -> dict[str, Tensor]:
    """All samples of a stream, those of other processes too, and the sizes of the batches."""
    batches = stream.samples()
    beside = {
        SEGMENTS: stream.segments, WEIGHTS: stream.token_weights, NOISED: stream.noised,
    }  # fmt: skip
    return {
        TOKENS: stream.tokens.contiguous(),
        ROWS: torch.tensor([len(batch) for batch in batches], dtype=torch.int64),
        **{name: given.contiguous() for name, given in beside.items() if given is not None},
    }


def read_samples(path: Path) -> Batches:
    """Read the samples of all processes. Raises ``InvalidJournal``."""
    try:
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        rows = found[ROWS].tolist()
        beside = [found.get(name) for name in (SEGMENTS, WEIGHTS, NOISED)]
        apart = [None if each is None else torch.split(each, rows) for each in beside]
        return Batches(torch.split(found[TOKENS], rows), *apart)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise InvalidJournal("samples cannot be read", where=[str(path)]) from error


class Batch(NamedTuple):
    """What the journal has of one batch."""

    tokens: Tensor
    segments: Tensor | None
    weights: Tensor | None
    noised: Tensor | None
    values: dict[str, Tensor]


def read_batch(path: Path) -> Batch:
    """Read one batch. Raises ``InvalidJournal``."""
    try:
        with safe_open(path, framework="pt") as file:
            # Copied out of the mapping, into memory that torch has aligned.
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        tokens = found.pop(TOKENS)
        beside = (found.pop(name, None) for name in (SEGMENTS, WEIGHTS, NOISED))
        segments, weights, noised = beside
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidJournal("a batch of states cannot be read", where=[str(path)]) from error
    values = {name.removeprefix(HELD): value for name, value in found.items()}
    return Batch(tokens, segments, weights, noised, values)
