"""Bring the forms of lowered layers to the ranks that compute with them or write them.

A working or stored form stays with the rank that made it. When ranks come to a place where some of
them read it, all of them say what they lack, then who of them has it, and it goes to those who
asked and to no other. A rank that asks for nothing gets nothing; one that reads without asking
finds no data, which the tensor table says (``InvalidGraph``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import msgpack

from qdc.distributed.world import World
from qdc.errors import InvalidGraph
from qdc.ir.annotations import Packed
from qdc.ir.graph import LayerGraph
from qdc.ir.tensors import TensorTable
from qdc.ir.types import TensorRef

KINDS = ("", "cpu", "cuda")
"""Where a rank has a form, by the byte that says so; nowhere is the first."""


@dataclass(frozen=True)
class Forms:
    """The forms of all weights of a graph, as one rank has them."""

    world: World
    graph: LayerGraph
    tensors: TensorTable

    def of(self, name: str) -> tuple[TensorRef, ...]:
        """The tensors that a node's weight stands in: stored ones once it is packed; or none."""
        notes = self.graph.annotations(self.graph.owner(name)).values()
        forms = [note for note in notes if note.of_weight]
        stored = [note for note in forms if isinstance(note, Packed)]
        return tuple(ref for note in stored or forms for ref in note.refs())

    def scattered(self, name: str) -> bool:
        """Whether some rank lacks a form that another has: all ranks know the same."""
        return any(self.tensors.home(ref) is not None for ref in self.of(name))

    def bring(self, names: Iterable[str]) -> None:
        """Get what this rank lacks of the forms of these nodes.

        Every rank calls it, each with the names of what it reads itself. Inside of work that is
        shared nothing moves: ranks cannot meet there.

        Raises:
            InvalidGraph: a tensor was changed on its way.
            FailedElsewhere: another rank has failed instead of coming here.
        """
        world = self.world
        if world.size == 1 or world.apart:
            return
        read = {self.graph.owner(name) for name in names}
        nodes, places = self._nodes, self._places
        lacking = sorted(places[name] for name in read if self._lacks(name))
        answers = world.agree(msgpack.packb([bool(read), lacking]))
        asked = [msgpack.unpackb(answer) for answer in answers]
        wanted = sorted({place for _, lacked in asked for place in lacked})
        if not wanted:
            return
        held = world.agree(bytes(self._kind(nodes[place]) for place in wanted))
        readers = {rank for rank, (reads, _) in enumerate(asked) if reads}
        for column, place in enumerate(wanted):
            have = {rank: answer[column] for rank, answer in enumerate(held) if answer[column]}
            to = [rank for rank, (_, lacked) in enumerate(asked) if place in lacked]
            if have:
                source = min(have)
                self._send(nodes[place], source, to, readers, KINDS[have[source]])
                if len(have) + len(to) == world.size:
                    for ref in self.of(nodes[place]):
                        self.tensors.share(ref)

    def locate(self) -> None:
        """Find out which rank has what, where that is not known: after a compile was interrupted.

        Every rank calls it, with the same annotations on the graph.
        """
        world = self.world
        if world.size == 1:
            return
        refs = list(dict.fromkeys(ref for node in self.graph for ref in self.of(node.name)))
        answers = world.agree(bytes(self.tensors.is_here(ref) for ref in refs))
        for ref, here in zip(refs, zip(*answers, strict=True), strict=True):
            if any(here) and not all(here):
                self.tensors.note_home(ref, here.index(1))

    @cached_property
    def _nodes(self) -> list[str]:
        return [node.name for node in self.graph]

    @cached_property
    def _places(self) -> dict[str, int]:
        """By name: messages name nodes by their places, which are the same on all ranks."""
        return {name: place for place, name in enumerate(self._nodes)}

    def _lacks(self, name: str) -> bool:
        """Whether something of the form is not here, and is elsewhere."""
        lacking = (ref for ref in self.of(name) if not self.tensors.is_here(ref))
        return any(self.tensors.home(ref) is not None for ref in lacking)

    def _kind(self, name: str) -> int:
        """Where this rank has all of a form: a place among ``KINDS``."""
        refs = self.of(name)
        if not refs or not all(map(self.tensors.is_here, refs)):
            return 0
        devices = set(map(self.tensors.device_of, refs))
        return KINDS.index("cuda" if devices == {"cuda"} else "cpu")

    def _send(
        self, name: str, source: int, to: Sequence[int], readers: set[int], kind: str
    ) -> None:
        """Send one form; by way of the first of several that read it, if the source reads nothing.

        So those who read together pass it among themselves, and need one group for that.
        """
        for ref in self.of(name):
            if source not in readers and 1 < len(to) < self.world.size - 1:
                self._move(ref, source, to[:1], kind)
                self._move(ref, to[0], to[1:], kind)
            else:
                self._move(ref, source, to, kind)

    def _move(self, ref: TensorRef, source: int, to: Sequence[int], kind: str) -> None:
        tensor = self.tensors.get(ref) if self.world.rank == source else None
        found = self.world.deliver(ref, tensor, source, to, kind)
        if self.world.rank in to and self.tensors.put(ref.name, found) != ref:
            raise InvalidGraph(f"tensor {ref.name} was changed on its way", where=[ref.name])
