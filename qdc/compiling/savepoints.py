"""What a running compile puts down at the end of each step, so that another process can go on.

Written in this order: the step's part of the artifact, the tensors that later passes read, the
graph, the values of the calibration streams, and then the journal that names them all. Files that
only an older journal names are removed afterwards. At any moment one complete journal is there.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError, safe_open
from torch import Tensor

from qdc.artifact.journal import Entry, File, Journal, PassRecord, StreamState
from qdc.artifact.partial import Partial
from qdc.artifact.writer import ArtifactWriter
from qdc.compiling.instruments import Meter, Remarks
from qdc.compiling.runner import Runner
from qdc.disk import sync_folder, write_bytes, write_tensors
from qdc.errors import InvalidJournal
from qdc.ir.dump import to_bytes
from qdc.pipeline.traversal import Step
from qdc.streaming.stream import Stream
from qdc.streaming.workspace import Key, Workspace

TOKENS, SEGMENTS, WEIGHTS, HELD = "tokens", "segments", "weights", "held."


class Savepoints:
    """Writes the journal of one compile and the files that it names."""

    def __init__(
        self,
        partial: Partial,
        runner: Runner,
        writer: ArtifactWriter,
        observed: tuple[Meter, Remarks],
        identity: Mapping[str, str],
        started: float,
    ) -> None:
        """Begin where the folder's journal ends.

        Args:
            partial: the folder, locked.
            runner: of the compile; its tensors go to the folder ``kept``.
            writer: of the artifact; its files are in the folder ``artifact``.
            observed: what the instruments have seen so far goes into the journal.
            identity: what the artifact's bytes depend on.
            started: when this process began, by ``time.perf_counter``.
        """
        self.partial, self.runner, self.writer = partial, runner, writer
        self.meter, self.remarks = observed
        self.identity = dict(identity)
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
        written = [
            File(name=path.name, sha256=self.writer.digest(path.name))
            for path in sorted(self.writer.folder.iterdir())
            if path.name not in known
        ]
        tensors = self.runner.tensors_file(step)
        entry = Entry(
            step=step.name,
            written=tuple(written),
            tensors=(File.of(tensors),) if tensors.exists() else (),
            graph=self._graph(step),
            streams=tuple(
                self._stream(step, key, stream) for key, stream in self.workspace.streams()
            ),
        )
        for folder in (self.writer.folder, self.partial.kept):
            sync_folder(folder)
        self.partial.save(
            Journal(
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

    def _thinned(self, entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
        """Earlier entries without what only the last needs: graphs inside a segment, values."""
        found = []
        for entry, step in zip(entries, self.runner.traversal.steps, strict=False):
            streams = tuple(s.model_copy(update={"batches": ()}) for s in entry.streams)
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
        files, given = [], stream.token_weights
        weights = None if given is None else stream.rows(given)
        for batch, (tokens, held) in enumerate(zip(stream.batches(), stream.kept, strict=True)):
            path, beside = self.partial.kept / f"{name}_{batch}.safetensors", {}
            if (apart := stream.segments_of(batch)) is not None:
                beside[SEGMENTS] = apart.contiguous()
            if weights is not None:
                beside[WEIGHTS] = weights[batch].contiguous()
            values = {HELD + key: held[key] for key in held}
            write_tensors(path, {TOKENS: tokens, **beside, **values})
            files.append(File.of(path))
        trail = stream.trail
        return StreamState(
            place=place,
            original=original,
            stops=trail.stops,
            left=trail.left,
            calls=trail.calls,
            routed=trail.routed,
            batches=tuple(files),
        )


class Batch(NamedTuple):
    """What the journal has of one batch."""

    tokens: Tensor
    segments: Tensor | None
    weights: Tensor | None
    values: dict[str, Tensor]


def read_batch(path: Path) -> Batch:
    """Read one batch. Raises ``InvalidJournal``."""
    try:
        with safe_open(path, framework="pt") as file:
            # Copied out of the mapping, into memory that torch has aligned.
            found = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        tokens = found.pop(TOKENS)
        segments, weights = found.pop(SEGMENTS, None), found.pop(WEIGHTS, None)
    except (OSError, SafetensorError, KeyError) as error:
        raise InvalidJournal("a batch of states cannot be read", where=[str(path)]) from error
    values = {name.removeprefix(HELD): value for name, value in found.items()}
    return Batch(tokens, segments, weights, values)
