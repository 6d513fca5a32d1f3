"""Go on from a journal: check what it names, redo what is damaged, restore the rest.

A damaged file costs its own step. For a shard or for tensors that wait, the step runs again: its
region starts from the graph as it was, and the calibration streams go their old way through the
finished regions, whose weights are in the shards. What was done again must have its old digest.

Several processes go on together, each from its own part. They redo nothing: where a file of one is
damaged, all stop and say so.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open

from qdc.artifact.journal import DISCARD, Entry, File, Journal, damaged_journal
from qdc.artifact.lockedfolder import remove
from qdc.checkpoint.folder import SAFETENSORS_DTYPES
from qdc.compiling.dumper import notes_of
from qdc.compiling.instruments import Instrument
from qdc.compiling.runner import RegionDone, Runner
from qdc.compiling.savepoints import Savepoints
from qdc.compiling.streamstates import StreamStates
from qdc.errors import InvalidDump, InvalidJournal
from qdc.ir.annotation import Annotation
from qdc.ir.dump import read
from qdc.ir.graph import LayerGraph
from qdc.ir.lines import Tags
from qdc.ir.opaque import Opaque
from qdc.ir.tensors import digest
from qdc.ir.types import TensorRef
from qdc.pipeline.traversal import Step

Notes = Mapping[str, Iterable[Annotation]]


class Resumption:
    """One journal on its way back into a workspace that has done nothing yet."""

    def __init__(self, savepoints: Savepoints, journal: Journal, tags: Tags) -> None:
        """Check that it is a journal of this very compile.

        Args:
            savepoints: of the compile.
            journal: what the folder had.
            tags: the annotation classes that are known, by tag.

        Raises:
            InvalidJournal: inputs or options are others; all that have changed are named.
        """
        self.savepoints, self.journal, self.tags = savepoints, journal, tags
        self.runner, self.workspace = savepoints.runner, savepoints.workspace
        self.streams = StreamStates(self.workspace, savepoints.partial)
        self.kept = savepoints.partial.kept
        self.artifact = savepoints.partial.artifact
        self.graph = self.workspace.program.graph
        self._initial = notes_of(self.graph, [node.name for node in self.graph])
        changed = journal.changes(savepoints.identity)
        if changed:
            raise InvalidJournal(
                f"the interrupted compile was of other inputs or options, {len(changed)} changed",
                where=changed,
                help=f"resume it with what it was begun with, or {DISCARD}",
            )
        steps = self.runner.traversal.steps[: len(journal.entries)]
        agree = [entry.step for entry in journal.entries] == [step.name for step in steps]
        if not agree or journal.total != len(self.runner.traversal.steps):
            raise self._damaged("its steps are not those of the pipeline")
        if len(journal.passes) != len(savepoints.meter.measured):
            raise self._damaged("its passes are not those of the pipeline")

    def restore(self, region_done: RegionDone, instruments: Sequence[Instrument]) -> int:
        """Redo what is damaged, then stand where the journal ends.

        Args:
            region_done: writes a finished region.
            instruments: what watches steps that run again; remarks and costs are counted once.

        Returns:
            Number of the first step to run.
        """
        entries = self.journal.entries
        damaged = [
            step
            for step, entry in zip(self.runner.traversal.steps, entries, strict=False)
            if not self._is_whole(entry)
        ]
        if self.workspace.world.size > 1:
            self._require_whole(damaged)
        broken = {step.number for step in damaged}
        for number, entry in enumerate(entries):
            if number not in broken:
                for file in entry.written:
                    self._adopt(file)
        for step in damaged:
            self._redo(step, region_done, instruments)
        self._load(self._graph(entries[-1]), len(entries))
        self.workspace.forms.locate()
        self.streams.restore(entries[-1])
        self._restore_counts()
        return len(entries)

    def _adopt(self, file: File) -> None:
        """Take over a finished file of the artifact."""
        if self.savepoints.writer is None:
            raise self._damaged("a process that is not the first has files of the artifact")
        self.savepoints.writer.adopt(file.name, file.sha256)

    def _require_whole(self, damaged: Sequence[Step]) -> None:
        """Refuse damaged files of any process. Raises ``InvalidJournal`` with their names."""
        last = self.journal.entries[-1]
        lost = [step.name for step in damaged]
        lost += [file.name for file in last.kept() if not file.is_whole(self.kept)]
        answers = self.workspace.world.agree("\n".join(lost).encode())
        where = [
            f"rank {rank}: {name}"
            for rank, answer in enumerate(answers)
            for name in answer.decode().splitlines()
        ]
        if where:
            raise InvalidJournal(
                "files of the interrupted compile are missing or damaged",
                where=where,
                help=f"several processes do not redo what is damaged: {DISCARD}",
            )

    def _is_whole(self, entry: Entry) -> bool:
        return all(file.is_whole(self.artifact) for file in entry.written) and all(
            file.is_whole(self.kept) for file in entry.tensors
        )

    def _redo(self, step: Step, region_done: RegionDone, instruments: Sequence[Instrument]) -> None:
        """Run a finished step again, and see that it gives what it gave."""
        entry = self.journal.entries[step.number]
        self._load(self._notes_before(step), step.number)
        if step.region:
            self.streams.follow(self.journal.entries[step.number - 1])
        quiet = Runner(
            self.runner.plan, self.workspace, instruments, self.kept, keep=self.runner.keep
        )
        for file in (*entry.written, *entry.tensors):
            for folder in (self.artifact, self.kept):
                remove(folder / file.name)  # whatever has come in its place
        quiet.run_step(step, region_done)
        self.workspace.end_segment()
        self.workspace.trails.clear()
        self.workspace.remarks.clear()
        if not self._is_whole(entry):
            raise InvalidJournal(
                f"{step.name} was damaged, and doing it again gives other bytes than before",
                where=[file.name for file in (*entry.written, *entry.tensors)],
                help=f"the machine is not as it was: {DISCARD}",
            )

    def _notes_before(self, step: Step) -> Notes:
        """What the graph carried: regions in front are as the segment leaves them."""
        before = self._notes_of_segment(step.segment - 1)
        if not step.region:
            return before
        ahead = self.graph.regions[: step.region]
        done = self._notes_of_segment(step.segment)
        return {**before, **{name: done[name] for region in ahead for name in region.nodes}}

    def _notes_of_segment(self, segment: int) -> Mapping[str, Iterable[Annotation]]:
        """What the graph carried at the end of a segment, or as far as the journal goes."""
        inside = [step.number for step in self.runner.traversal.steps if step.segment <= segment]
        done = [number for number in inside if number < len(self.journal.entries)]
        return self._graph(self.journal.entries[done[-1]]) if done else self._initial

    def _graph(self, entry: Entry) -> Mapping[str, tuple[Annotation, ...]]:
        """Read annotations back. Raises ``InvalidJournal``."""
        if entry.graph is None or not entry.graph.is_whole(self.kept):
            raise self._damaged(f"the graph after {entry.step} is missing or damaged")
        try:
            found: LayerGraph = read(self.kept / entry.graph.name, self.tags)
        except InvalidDump as error:
            raise self._damaged(error.what) from error
        if found.structure != self.graph.structure:
            raise self._damaged(f"the graph after {entry.step} is one of another model")
        notes = notes_of(found, [node.name for node in found])
        unknown = {
            f"@{note.unknown_tag}"
            for carried in notes.values()
            for note in carried
            if isinstance(note, Opaque)
        }
        if unknown:
            raise InvalidJournal(
                "annotations that no pass declares cannot be taken up again",
                where=sorted(unknown),
                help=f"{DISCARD}, or name their classes in the provides of the pass",
            )
        return notes

    def _load(self, notes: Notes, done: int) -> None:
        """Put annotations on the graph, and find their tensors in the files of ``done`` steps."""
        self.graph.restore(notes)
        named = {
            ref.name: ref
            for node in self.graph
            for note in self.graph.annotations(node.name).values()
            for ref in note.refs()
        }
        table = self.workspace.tensors
        table.clear()
        for ref in named.values():
            table.know(ref)
        entries = self.journal.entries[:done]
        files = [self.kept / file.name for entry in entries for file in entry.tensors]
        files += [self.artifact / file.name for entry in entries for file in entry.written]
        for path in files:
            if path.suffix == ".safetensors":
                table.adopt(self._found(path, named), path)

    def _found(self, path: Path, named: Mapping[str, TensorRef]) -> list[TensorRef]:
        """Which of the named tensors a file has: by digest, as it may hold older ones of a name."""
        found = []
        try:
            with safe_open(path, framework="pt") as file:
                for name in sorted(set(file.keys()) & set(named)):
                    view, ref = file.get_slice(name), named[name]
                    kind = SAFETENSORS_DTYPES.get(view.get_dtype()), tuple(view.get_shape())
                    if (
                        kind == (ref.dtype, ref.shape)
                        and digest(file.get_tensor(name)) == ref.digest
                    ):
                        found.append(ref)
        except (OSError, SafetensorError) as error:
            raise self._damaged(f"{path.name} cannot be read") from error
        return found

    def _restore_counts(self) -> None:
        journal, savepoints = self.journal, self.savepoints
        self.workspace.linear_calls = journal.linear_calls
        self.workspace.samples = journal.samples
        self.workspace.text = list(journal.text)
        self.workspace.sampled = list(journal.sampled)
        self.workspace.certainty = list(journal.certainty)
        savepoints.remarks.earlier = journal.remarks
        for row, cost in zip(savepoints.meter.measured, journal.passes, strict=True):
            row.seconds, row.peak_bytes, row.units = cost.seconds, cost.peak_bytes, cost.units

    def _damaged(self, why: str) -> InvalidJournal:
        return damaged_journal(self.savepoints.partial.folder, why)
