"""How the processes that share a compile work on one scope, each on a part of it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from qdc.distributed import ownership
from qdc.distributed.exchange import Changes, Exchange, notes_on
from qdc.distributed.handshake import total
from qdc.distributed.reduction import Accumulator, Part, accumulate
from qdc.ir.annotation import Annotation
from qdc.ir.graph import Node, Stage
from qdc.ir.routing import rows_of
from qdc.ir.types import TensorRef
from qdc.pipeline.traversal import Scope
from qdc.streaming.remark import Remark
from qdc.streaming.stream import Stream
from qdc.streaming.workspace import Workspace


@dataclass(frozen=True)
class SharedScope(Scope, ABC):
    """A scope whose samples and layers are spread over the processes of a compile."""

    _workspace: Workspace

    @abstractmethod
    def annotate(self, node: Node, note: Annotation) -> None:
        """Write an annotation on a layer, in place of what its slot held."""

    def get(self, ref: TensorRef) -> Tensor:
        """A tensor that an annotation names, on the device.

        One that only its owner has is fetched, on all ranks.
        """
        table, world = self._workspace.tensors, self._workspace.world
        home = table.home(ref)
        if home is not None and not world.apart and world.size > 1:
            held = table.get(ref) if home == world.rank else None
            mine = b"" if held is None else held.device.type.encode()
            (kind, *_) = filter(None, world.agree(mine))
            table.put(ref.name, world.broadcast(ref, held, home, kind.decode()))
            table.share(ref)
        return table.get(ref).to(self._workspace.device)

    def accumulate(
        self, nodes: Sequence[Node], add: Callable[[], None], *accumulators: Accumulator
    ) -> None:
        """Add this process's samples up by ``add``, then the sums of all processes.

        The accumulators then hold the sums over all samples, in the processes that own one of the
        nodes; ``share`` calls work there.
        """
        self.accumulate_all([(nodes, accumulators)], add)

    def accumulate_all(
        self,
        parts: Sequence[tuple[Sequence[Node], Sequence[Accumulator]]],
        add: Callable[[], None],
    ) -> None:
        """The same for several groups of nodes at once, each with accumulators of its own."""
        owners = self._owners([node for nodes, _ in parts for node in nodes])
        needed = [
            Part(sorted({owners[n.name] for n in nodes}), sums, narrow=self._is_routed(nodes))
            for nodes, sums in parts
        ]
        accumulate(self._workspace.world, needed, add)

    def _is_routed(self, nodes: Sequence[Node]) -> bool:
        """Whether the nodes read the tokens of an expert: there are many such sums."""
        return all(rows_of(self.graph, node.inputs[0]) is not None for node in nodes)

    def total(self, stream: Stream, *counts: int) -> list[int]:
        """Counts over all samples, from those of the samples that the stream moves here."""
        if not stream.split:
            return list(counts)
        return [int(count) for count in total(self._workspace.world, *counts)]

    def share(
        self,
        nodes: Sequence[Node],
        work: Callable[[tuple[Node, ...]], Mapping[str, str] | None],
    ) -> dict[str, str]:
        """Let each process work on the nodes that it owns; what it writes is written everywhere.

        Args:
            nodes: linears, or other matrices. Those of one stage are spread over the processes.
            work: called with this process's nodes, if there are any, in their order; annotates
                them, and may read tensors of theirs. What it returns by node is for everybody.

        Returns:
            What all calls returned, in the order of the nodes.
        """
        workspace, world, owners = self._workspace, self._workspace.world, self._owners(nodes)
        mine = tuple(node for node in nodes if owners[node.name] == world.rank)
        names, said = self.touched() if world.size > 1 else [], len(workspace.remarks)
        before = notes_on(self.graph, names)
        with world.by_itself():
            found = dict(work(mine) or {}) if mine else {}
        if world.size == 1:
            return found
        after, forms = notes_on(self.graph, names), self.step.reads_all
        changes = Changes.since(before, after, workspace.tensors, forms=forms)
        remarks = [[r.kind, r.step, r.layer, r.plain()] for r in workspace.remarks[said:]]
        changes.extra = {"found": found, "remarks": remarks}
        answers = self._exchange().spread(changes)
        place = {node.name: index for index, node in enumerate(nodes)}
        heard = [Remark(*each) for answer in answers for each in answer["remarks"]]
        workspace.remarks[said:] = sorted(heard, key=lambda r: place.get(r.layer, len(place)))
        merged = {name: text for answer in answers for name, text in answer["found"].items()}
        return dict(sorted(merged.items(), key=lambda item: place.get(item[0], len(place))))

    def share_wave(
        self,
        wave: Sequence[tuple[Stage, tuple[Node, ...]]],
        work: Callable[[Stage, tuple[Node, ...]], Mapping[str, str] | None],
    ) -> dict[str, str]:
        """Share the layers of a wave; ``work`` gets one stage after the other, its layers here."""

        def work_by_stage(mine: tuple[Node, ...]) -> dict[str, str]:
            names, found = {node.name for node in mine}, dict[str, str]()
            for stage, layers in wave:
                here = tuple(node for node in layers if node.name in names)
                if here:
                    found |= work(stage, here) or {}
            return found

        return self.share([node for _, layers in wave for node in layers], work_by_stage)

    def settle(self) -> None:
        """Make sure that all processes have come to the same annotations."""
        if self._workspace.world.size == 1:
            return
        for name in self._exchange().settle(self.touched()):
            remark = Remark("note", self.step.name, name, {"taken_from": "rank 0"})
            self._workspace.remarks.append(remark)

    def touched(self) -> list[str]:
        """Nodes that may have changed: the unit, what its stages read, all outside of regions."""
        if self.region is None:
            return [node.name for node in self.graph]
        inside: Sequence[str] = self.region.nodes
        if not self.whole_region:
            inside = [name for stage in self.stages for name in (stage.value, *stage.layers)]
        return list(dict.fromkeys((*self._workspace.outside, *inside)))

    def _exchange(self) -> Exchange:
        def annotate(name: str, note: Annotation) -> None:
            self.annotate(self.graph[name], note)

        workspace = self._workspace
        return Exchange(workspace.world, self.graph, workspace.tensors, annotate, workspace.tags)

    def _owners(self, nodes: Sequence[Node]) -> Mapping[str, int]:
        """The rank that works on each of these nodes, by name; the same whenever it is asked."""
        known, ranks = self._workspace.owners, self._workspace.world.size
        if not known:
            for region in self.graph.regions:
                waves = self._workspace.waves(region)
                wanted = [[list(self.graph.layers([s])) for s in wave] for wave in waves]
                known.update(ownership.owners(wanted, ranks))
        others = [node for node in nodes if node.name not in known]
        known.update(ownership.owners([[others]], ranks))
        return known
