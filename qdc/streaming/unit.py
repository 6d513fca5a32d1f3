"""The view that a pass gets: the layers of one stage, of one region, or of the model."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdc.distributed.exchange import Changes, Exchange, notes_on
from qdc.distributed.handshake import total
from qdc.distributed.reduction import Accumulator, accumulate
from qdc.errors import InvalidCalibration, InvalidGraph
from qdc.format.codec import Lowered
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Packed
from qdc.ir.graph import Node
from qdc.ir.keys import file_key
from qdc.ir.tensors import TensorTable, torch_dtype
from qdc.ir.text_use import TextUse
from qdc.ir.tuned import Tuned
from qdc.ir.types import TensorRef, short_dtype
from qdc.pipeline.traversal import Scope
from qdc.streaming.apart import require_apart
from qdc.streaming.calibration import Calibration
from qdc.streaming.original import original_weights
from qdc.streaming.remark import Remark
from qdc.streaming.stream import NodeWeights, Stream
from qdc.streaming.workspace import Key, MakeBatches, Workspace


@dataclass(frozen=True)
class Unit(Scope):
    """What one call of ``Pass.run`` may look at and rewrite: all that a pass can reach."""

    _workspace: Workspace

    @classmethod
    def of(cls, scope: Scope, workspace: Workspace) -> "Unit":
        """The unit of a scope in a running compile."""
        return cls(**vars(scope), _workspace=workspace)

    @property
    def tensors(self) -> TensorTable:
        """The tensor table."""
        return self._workspace.tensors

    @property
    def device(self) -> torch.device:
        """Where the arithmetic happens."""
        return self._workspace.device

    def weight(self, node: Node) -> Tensor:
        """The original weight, ``f32[rows, columns]`` on the device."""
        return self._workspace.parameter(node)

    def row_parts(self, node: Node, count: int) -> Iterator[Tensor]:
        """The original weight, ``f32[count, columns]`` on the device at a time, none of it kept."""
        return self._workspace.row_parts(node, count)

    def current(self, node: Node, role: str = "weight") -> Tensor:
        """A parameter as the streams compute with it now: dequantized, tuned, or the original."""
        return self._workspace.current(node.name, role)

    def put(self, name: str, tensor: Tensor) -> TensorRef:
        """Keep a tensor for later passes; ``name`` is unique, by habit ``layer:what``."""
        return self.tensors.put(name, tensor)

    def get(self, ref: TensorRef) -> Tensor:
        """A tensor that an annotation names, on the device."""
        return self._workspace.tensor(ref).to(self.device)

    def find(self, ref: TensorRef) -> Tensor | None:
        """A tensor that may have been released since; None then."""
        if self.tensors.home(ref) is not None:
            return self.get(ref)
        with contextlib.suppress(InvalidGraph):
            return self.get(ref)
        return None

    def annotate(self, node: Node, note: Annotation) -> None:
        """Write an annotation on a layer, in place of what its slot held.

        A new lowering takes the packed form of the old away. Tensors that no annotation of the
        layer names any more are released, unless they are scratch, which a stage shares.

        Raises:
            InvalidGraph: it is no annotation, or of a type that no pass declares: nothing could
                read it back from a dump.
        """
        self._require_declared(node, note)
        before = self._owned(node)
        if isinstance(note, Lowered):
            self.graph.remove(node.name, Packed)
        self.graph.annotate(node.name, note)
        if isinstance(note, Lowered | Tuned):
            self._workspace.rewritten(node.name)
        for name in before - self._owned(node):
            self.tensors.release(name)

    def _require_declared(self, node: Node, note: object) -> None:
        """Refuse what the registry does not know: it takes types from what passes declare."""
        step, tags = self.step, self._workspace.tags
        declared = (*step.provides, *step.requires, *step.annotates, *tags.values())
        ours = type(note).__module__.startswith("qdc.")
        if not isinstance(note, Annotation):
            raise InvalidGraph(
                f"{step.name} annotates {note!r}, which is no annotation",
                where=[f"%{node.name}"],
                help="give an object of an annotation type, such as Kept(reason=...)",
            )
        if not ours and type(note) not in declared:
            raise InvalidGraph(
                f"{step.name} annotates @{note.tag}, which it does not declare",
                where=[f"%{node.name}"],
                help=f"put {type(note).__name__} into provides if every layer gets one, else into "
                "annotates",
            )

    def tune(self, node: Node, role: str, value: Tensor) -> Tensor:
        """Put ``value`` in place of a parameter, or give a linear the bias that it lacks.

        It is rounded to what the artifact stores: the checkpoint's dtype, fp16 for an added bias.

        Args:
            node: a norm, a linear: any node with parameters but for matrices.
            role: ``weight`` or ``bias``.
            value: of the parameter's shape, ``[rows]`` for an added bias.

        Returns:
            The rounded value in fp32 on the device; the streams compute with it from now on.

        Raises:
            InvalidGraph: it is not finite in that dtype.
        """
        stored = value.detach().to("cpu", self.stored_dtype(node, role))
        if not bool(stored.isfinite().all()):
            raise InvalidGraph(
                f"the tuned {role} is not finite in {short_dtype(str(stored.dtype))}",
                where=[f"%{node.name}"],
            )
        before = self.graph.get(node.name, Tuned)
        tensors = {} if before is None else dict(zip(before.roles, before.tensors, strict=True))
        tensors[role] = self.put(file_key(node.path, role), stored.contiguous())
        self.annotate(node, Tuned(roles=tuple(tensors), tensors=tuple(tensors.values())))
        return stored.to(self.device, torch.float32)

    @staticmethod
    def stored_dtype(node: Node, role: str) -> torch.dtype:
        """What a tuned parameter is rounded to: the checkpoint's dtype, fp16 for an added bias."""
        own = next((p for p in node.parameters if p.role == role), None)
        return torch.float16 if own is None else torch_dtype(own.dtype)

    def _owned(self, node: Node) -> set[str]:
        notes = self.graph.annotations(node.name).values()
        return {ref.name for note in notes if not note.scratch for ref in note.refs()}

    def remark(self, kind: str, node: Node, **details: object) -> None:
        """Say something about a layer; shown with ``--remarks``."""
        self._workspace.remarks.append(Remark(kind, self.step.name, node.name, details))

    @property
    def remarks(self) -> tuple[Remark, ...]:
        """What was said in this unit, and not taken over yet by whoever watches the run."""
        return tuple(self._workspace.remarks)

    def take_remarks(self) -> tuple[Remark, ...]:
        """Take the remarks over: they are not given again."""
        found = self.remarks
        self._workspace.remarks.clear()
        return found

    def stream(self, make: MakeBatches, *, split: bool = False) -> Stream:
        """This pass's calibration stream; ``make`` gives its batches of token ids once.

        With ``split`` each process moves a part of them, and ``accumulate`` adds up over all.
        """
        return self._workspace.stream(self.place, make, split=split)

    def reference(self, make: MakeBatches, *, split: bool = False) -> Stream:
        """A stream of this pass through the original model, whatever passes rewrite."""
        return self._workspace.stream(self.place, make, original=True, split=split)

    def open_streams(self) -> dict[Key, Stream]:
        """Every open stream, by the place of its pass and whether it is through the original model.

        For passes that look at what others did; nobody but its own pass moves a stream.
        """
        return dict(self._workspace.streams())

    def original_weights(self) -> NodeWeights:
        """The checkpoint's own tensors in fp32 on the device, read anew at every call."""
        workspace = self._workspace
        return original_weights(workspace.program, workspace.checkpoint, workspace.device)

    def loose_stream(self, batches: Sequence[Tensor], weights: NodeWeights) -> Stream:
        """A stream that nobody else moves, and that is not kept for a compile that is resumed.

        Args:
            batches: ``i64[b, length]`` token ids; ``Batches`` where they have segments.
            weights: what its nodes are computed with.
        """
        return self._workspace.loose_stream(batches, weights)

    def check_apart(self, *, isolate: bool) -> None:
        """Refuse a model that would mix padding or, with ``isolate``, documents into others.

        Raises:
            UnsupportedModel: names the nodes that would.
        """
        require_apart(self._workspace.program, isolate=isolate)

    def note_text(self, use: TextUse) -> None:
        """Say what samples were made of, for the report; several passes may draw the same."""
        if use not in self._workspace.text:
            self._workspace.text.append(use)

    def count(self, *streams: Stream) -> None:
        """Count what loose streams have executed as part of the calibration."""
        self._workspace.linear_calls += sum(stream.linear_calls for stream in streams)

    def accumulate(
        self, nodes: Sequence[Node], add: Callable[[], None], *accumulators: Accumulator
    ) -> None:
        """Add this process's samples up by ``add``, then the sums of all processes.

        The accumulators then hold the sums over all samples, in the processes that own one of the
        nodes; ``share`` calls work there.
        """
        owners = self._workspace.owners(nodes)
        needed = sorted({owners[node.name] for node in nodes})
        accumulate(self._workspace.world, needed, accumulators, add)

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
        workspace = self._workspace
        owners, rank = workspace.owners(nodes), workspace.world.rank
        mine = tuple(node for node in nodes if owners[node.name] == rank)
        if workspace.world.size == 1:
            with workspace.world.by_itself():
                return dict(work(mine) or {}) if mine else {}
        names, said = self.touched(), len(workspace.remarks)
        before = notes_on(self.graph, names)
        with workspace.world.by_itself():
            found = dict(work(mine) or {}) if mine else {}
        changes = Changes.since(before, notes_on(self.graph, names), self.tensors)
        remarks = [[r.kind, r.step, r.layer, r.plain()] for r in workspace.remarks[said:]]
        changes.extra = {"found": found, "remarks": remarks}
        answers = self._exchange().spread(changes)
        place = {node.name: index for index, node in enumerate(nodes)}
        heard = [Remark(*each) for answer in answers for each in answer["remarks"]]
        workspace.remarks[said:] = sorted(heard, key=lambda r: place.get(r.layer, len(place)))
        merged = {name: text for answer in answers for name, text in answer["found"].items()}
        return dict(sorted(merged.items(), key=lambda item: place.get(item[0], len(place))))

    def settle(self) -> None:
        """Make sure that all processes have come to the same annotations."""
        if self._workspace.world.size == 1:
            return
        for name in self._exchange().settle(self.touched()):
            self.remark("note", self.graph[name], taken_from="rank 0")

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
        return Exchange(workspace.world, self.graph, self.tensors, annotate, workspace.tags)

    def calibration(self) -> Calibration:
        """The calibration text. Raises ``InvalidCalibration`` if the compile has none."""
        if self._workspace.calibration is None:
            raise InvalidCalibration(
                f"{self.step.name} needs calibration text and a tokenizer, and has none",
                help="set reads_calibration = True on the pass",
            )
        return self._workspace.calibration
