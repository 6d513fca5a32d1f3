"""Keep the graph equal on all ranks: what one rank has written on nodes is written on the others.

Annotations travel as in dumps, tensors beside them. Scratch tensors (moments, factors) stay where
they are, and so may the forms of lowered layers (``forms``): others know whose they are.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgpack
from torch import Tensor

from qdc.distributed.world import World
from qdc.errors import InvalidGraph
from qdc.ir.annotation import Annotation
from qdc.ir.dump import note_from, tagged
from qdc.ir.graph import LayerGraph
from qdc.ir.lines import Tags
from qdc.ir.opaque import Opaque
from qdc.ir.tensors import TensorTable
from qdc.ir.types import TensorRef

Annotate = Callable[[str, Annotation], None]
"""Writes an annotation on the node of a name, with all that hangs on it."""
Notes = Mapping[str, tuple[Annotation, ...]]


def notes_on(graph: LayerGraph, names: Iterable[str]) -> dict[str, tuple[Annotation, ...]]:
    """What these nodes carry now."""
    return {name: tuple(graph.annotations(name).values()) for name in names}


@dataclass
class Changes:
    """What one rank has written, as a message."""

    notes: list[tuple[str, Annotation]] = field(default_factory=list)
    removed: list[tuple[str, str]] = field(default_factory=list)
    """Node and slot."""
    sent: list[tuple[TensorRef, str]] = field(default_factory=list)
    """Tensors to go with the notes, and the kind of device where they are."""
    stay: list[str] = field(default_factory=list)
    """Names of tensors of forms that are here and not sent."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Whatever else the message is for; plain data."""

    @classmethod
    def since(
        cls, before: Notes, after: Notes, table: TensorTable, *, forms: bool = True
    ) -> "Changes":
        """What is in ``after`` and was not in ``before``, and the tensors that came with it.

        Args:
            before: annotations by node.
            after: the same later.
            table: has their tensors.
            forms: whether those of lowered layers are sent, too.
        """
        found = cls()
        seen = {ref for notes in before.values() for note in notes for ref in note.refs()}
        for name, notes in after.items():
            old = {note.fills: note for note in before.get(name, ())}
            slots = {note.fills for note in notes}
            found.removed += [(name, slot) for slot in old if slot not in slots]
            for note in notes:
                if old.get(note.fills) is note:
                    continue
                found.notes.append((name, note))
                for ref in note.refs():
                    if note.scratch or ref in seen or not table.is_here(ref):
                        continue
                    seen.add(ref)
                    if note.of_weight and not forms:
                        found.stay.append(ref.name)
                    else:
                        found.sent.append((ref, table.device_of(ref)))
        return found

    def to_bytes(self) -> bytes:
        """As a message."""
        data: bytes = msgpack.packb(
            {
                "notes": [[name, *tagged(note)] for name, note in self.notes],
                "removed": self.removed,
                "sent": [[ref.model_dump(mode="python"), kind] for ref, kind in self.sent],
                "stay": self.stay,
                "extra": self.extra,
            },
            use_bin_type=True,
        )
        return data

    @classmethod
    def from_bytes(cls, data: bytes, tags: Tags) -> "Changes":
        """Read a message. Raises ``InvalidGraph`` for an annotation that nobody declares."""
        raw = msgpack.unpackb(data, raw=False, use_list=False)
        notes = [note_from(list(entry), tags) for entry in raw["notes"]]
        unknown = [f"%{name} {note.text()}" for name, note in notes if isinstance(note, Opaque)]
        if unknown:
            raise InvalidGraph(
                "an annotation came from another process, and no pass says that it writes it",
                where=unknown,
                help="name it in the pass's provides or annotates",
            )
        sent = [(TensorRef.model_validate(ref), str(kind)) for ref, kind in raw["sent"]]
        removed = [(name, slot) for name, slot in raw["removed"]]
        return cls(notes, removed, sent, list(raw["stay"]), raw["extra"])


@dataclass(frozen=True)
class Exchange:
    """Changes of all ranks on their way to all ranks."""

    world: World
    graph: LayerGraph
    tensors: TensorTable
    annotate: Annotate
    tags: Tags

    def spread(self, mine: Changes) -> list[dict[str, Any]]:
        """Apply everybody's changes everywhere; returns the extra data of all ranks."""
        messages = self.world.agree(mine.to_bytes())
        extras = []
        for source, message in enumerate(messages):
            changes = Changes.from_bytes(message, self.tags)
            self.apply(changes, source)
            extras.append(changes.extra)
        return extras

    def apply(self, changes: Changes, source: int) -> None:
        """Take one rank's changes over, and its tensors. Every rank calls it."""
        own = source == self.world.rank
        for ref, kind in changes.sent:
            tensor = self.tensors.get(ref) if own else None
            found = self.world.broadcast(ref, tensor, source, kind)
            if not own:
                self._receive(ref, found)
        stay = set(changes.stay)
        for name, note in changes.notes:
            for ref in note.refs():
                if note.of_weight and ref.name in stay:
                    self._leave(ref, source)
                elif note.scratch:
                    self.tensors.note_home(ref, source)
            if not own:
                self.annotate(name, note)
        if not own:
            for name, slot in changes.removed:
                self.graph.discard(name, slot)

    def _leave(self, ref: TensorRef, source: int) -> None:
        """Know of a form that stays with its maker; what had its name here is forgotten."""
        if not self.tensors.is_here(ref):
            self.tensors.release(ref.name)
        self.tensors.note_home(ref, source)

    def _receive(self, ref: TensorRef, tensor: Tensor) -> None:
        if self.tensors.put(ref.name, tensor) != ref:
            raise InvalidGraph(f"tensor {ref.name} was changed on its way", where=[ref.name])

    def settle(self, names: list[str]) -> list[str]:
        """Where ranks have come to different annotations of these nodes, the first rank's count.

        A pass that every rank runs on everything gives equal results on equal machines; not every
        operation of a GPU does.

        Returns:
            Names of the nodes that differed.
        """
        notes = notes_on(self.graph, names)
        mine = b"".join(fingerprint(notes[name]) for name in names)
        answers = self.world.agree(mine)
        if len(set(answers)) == 1:
            return []
        length = len(fingerprint(()))
        parts = [slice(place * length, (place + 1) * length) for place in range(len(names))]
        odd = [
            name
            for name, part in zip(names, parts, strict=True)
            if len({answer[part] for answer in answers}) > 1
        ]
        self._adopt(odd)
        return odd

    def _adopt(self, names: list[str]) -> None:
        mine = Changes()
        if self.world.first:
            mine = Changes.since({}, notes_on(self.graph, names), self.tensors)
        (message, *_) = self.world.agree(mine.to_bytes())
        changes = Changes.from_bytes(message, self.tags)
        if not self.world.first:
            slots = {(name, note.fills) for name, note in changes.notes}
            for name, notes in notes_on(self.graph, names).items():
                for note in notes:
                    if note.scratch:
                        for ref in note.refs():
                            self.tensors.release(ref.name)
                    if (name, note.fills) not in slots:
                        self.graph.discard(name, note.fills)
        self.apply(changes, 0)


def fingerprint(notes: Iterable[Annotation]) -> bytes:
    """Digest of annotations, tensors included; 16 bytes."""
    packed: bytes = msgpack.packb(list(_plain(notes)), use_bin_type=True)
    return hashlib.sha256(packed).digest()[:16]


def _plain(notes: Iterable[Annotation]) -> Iterator[list[Any]]:
    return (list(tagged(note)) for note in notes)
