"""The view that a pass gets: the layers of one stage, of one region, or of the model."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdc.errors import InvalidCalibration, InvalidGraph
from qdc.format.codec import Lowered
from qdc.ir.activations import InputCodes, OutputCodes, RotatedHeads
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Packed
from qdc.ir.calibration_use import SampledStates, TokenCertainty
from qdc.ir.graph import Node
from qdc.ir.keys import file_key
from qdc.ir.tensors import TensorTable, torch_dtype
from qdc.ir.text_use import TextUse
from qdc.ir.tuned import Tuned
from qdc.ir.types import TensorRef, short_dtype
from qdc.models.layers import takes_windows
from qdc.pipeline.traversal import Scope
from qdc.streaming.apart import require_apart
from qdc.streaming.calibration import Calibration
from qdc.streaming.original import original_weights
from qdc.streaming.parameters import NodeWeights
from qdc.streaming.remark import Remark
from qdc.streaming.sharing import SharedScope
from qdc.streaming.stream import Stream
from qdc.streaming.workspace import Key, MakeBatches, Workspace


@dataclass(frozen=True)
class Unit(SharedScope):
    """What one call of ``Pass.run`` may look at and rewrite: all that a pass can reach."""

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

    @property
    def windowed(self) -> bool:
        """Whether attention alone knows of positions in the model (``qdc.models.window``)."""
        return takes_windows(self._workspace.program.module)

    def weight(self, node: Node) -> Tensor:
        """The original weight, ``f32[rows, columns]`` on the device, rotated if the layer is."""
        return self._workspace.parameter(node)

    def row_parts(self, node: Node, count: int) -> Iterator[Tensor]:
        """The original weight, ``f32[count, columns]`` on the device at a time, none of it kept."""
        if self.graph.get(node.name, RotatedHeads) is not None:
            yield from torch.split(self.weight(node), count)  # of rotated heads rows are mixed
            return
        for rows in torch.split(self._workspace.checkpoint.tensor(node.weight.name), count):
            yield self._workspace.inputs.weight(node, rows.to(self.device, torch.float32))

    def current(self, node: Node, role: str = "weight") -> Tensor:
        """A parameter as the streams compute with it now: dequantized, tuned, or the original.

        The form of a layer that another process made is fetched, on all ranks.
        """
        forms = self._workspace.forms
        if forms.scattered(node.name):
            forms.bring([node.name])
        return self._workspace.current(node.name, role)

    def put(self, name: str, tensor: Tensor) -> TensorRef:
        """Keep a tensor for later passes; ``name`` is unique, by habit ``layer:what``."""
        return self.tensors.put(name, tensor)

    def put_aside(self, name: str, tensor: Tensor) -> TensorRef:
        """Keep a large tensor for a later step, in a file: those of all regions never add up."""
        return self.tensors.put_aside(name, tensor)

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
        if isinstance(note, Lowered | Tuned | InputCodes | OutputCodes):
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
        return self._workspace.stream((self.place, False), make, split=split)

    def reference(self, make: MakeBatches, *, split: bool = False) -> Stream:
        """A stream of this pass through the original model, whatever passes rewrite."""
        return self._workspace.stream((self.place, True), make, split=split)

    def open_streams(self) -> dict[Key, Stream]:
        """Every open stream, by the place of its pass and whether it is through the original model.

        For passes that look at what others did; nobody but its own pass moves a stream.
        """
        return dict(self._workspace.streams())

    def original_weights(self) -> NodeWeights:
        """The checkpoint's own tensors in fp32 on the device, read anew at every call."""
        workspace = self._workspace
        return original_weights(workspace.program, workspace.checkpoint, workspace.device)

    def loose_stream(
        self, batches: Sequence[Tensor], weights: NodeWeights, *, as_stored: bool = False
    ) -> Stream:
        """A stream that nobody else moves, and that is not kept for a compile that is resumed.

        Args:
            batches: ``i64[b, length]`` token ids; ``Batches`` where they have segments.
            weights: what its nodes are computed with.
            as_stored: whether linears rotate and quantize what they read, as passes have said; the
                weights are then in those coordinates.
        """
        return self._workspace.loose_stream(batches, weights, as_stored=as_stored)

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

    def note_states(self, use: SampledStates) -> None:
        """Say what states were sampled, for the report; several passes may sample the same."""
        if use not in self._workspace.sampled:
            self._workspace.sampled.append(use)

    def note_certainty(self, use: TokenCertainty) -> None:
        """Say what confidence tokens were weighed by, for the report."""
        if use not in self._workspace.certainty:
            self._workspace.certainty.append(use)

    def count(self, *streams: Stream) -> None:
        """Count what loose streams have executed as part of the calibration."""
        workspace = self._workspace
        workspace.linear_calls += sum(stream.linear_calls for stream in streams)
        workspace.samples = max(workspace.samples, *(len(stream.tokens) for stream in streams))

    def calibration(self) -> Calibration:
        """The calibration text. Raises ``InvalidCalibration`` if the compile has none."""
        if self._workspace.calibration is None:
            raise InvalidCalibration(
                f"{self.step.name} needs calibration text and a tokenizer, and has none",
                help="set reads_calibration = True on the pass",
            )
        return self._workspace.calibration
