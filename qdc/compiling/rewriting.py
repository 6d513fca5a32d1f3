"""Run passes on a graph alone: no checkpoint, no calibration text, no tensors.

Some passes read annotations and write annotations. Whatever else a pass asks for is refused, before
anything runs where the pass declares it, else at the moment when it asks.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.instruments import GraphVerifier, Instrument, Remarks
from qdc.compiling.runner import Runner
from qdc.errors import MissingAnnotation, MissingWeights
from qdc.frontend.tracer import Program
from qdc.ir.annotation import Annotation
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.summary import Summary
from qdc.ir.tensors import TensorTable
from qdc.ir.types import TensorRef
from qdc.ir.verify import verify
from qdc.pipeline.plan import Plan, check_order
from qdc.streaming.unit import Unit
from qdc.streaming.workspace import Workspace

HELP = "run it by qdc compile on the model folder, where --dump-after writes the graph behind it"
Refuse = Callable[[str], MissingWeights]


def rewrite(graph: LayerGraph, plan: Plan, tags: Mapping[str, type[Annotation]]) -> tuple[str, ...]:
    """Run a plan on a graph, which it changes, and extend its pipeline by the plan's.

    Args:
        graph: a dump or a text that was read.
        plan: the passes.
        tags: every annotation that a pass may write, by tag.

    Returns:
        What the passes remark.

    Raises:
        MissingWeights: a pass asks for weights, tensors, calibration text or a forward.
        MissingAnnotation: a layer lacks what a pass reads, or a text shows just a summary of it.
        InvalidGraph: a pass left an invalid graph.
        QdcError: a pass refuses the graph.
    """
    for step in plan.passes():
        if step.reads_calibration:
            raise MissingWeights(
                f"{step.name} runs the model on calibration text, and a dump has neither", help=HELP
            )
    _check_annotations(graph, plan)
    for step in plan.passes():
        step.check(graph)
    asking, remarks = _Asking(), Remarks()
    workspace = _Bare(
        Program(graph, nn.Module(), {}),
        cast(Checkpoint, _NoCheckpoint(asking.refuse)),
        torch.device("cpu"),
        calibration=None,
        tensors=_Named(graph, asking.refuse),
        tags=tags,
    )
    workspace.refuse = asking.refuse
    with tempfile.TemporaryDirectory(prefix="qdc-") as folder:
        instruments = (asking, remarks, GraphVerifier())
        Runner(plan, workspace, instruments, Path(folder)).run(lambda region: None)
    graph.after = f"{graph.after},{plan}" if graph.after else str(plan)
    verify(graph, workspace.tensors)
    return remarks.lines()


def _check_annotations(graph: LayerGraph, plan: Plan) -> None:
    """Raise ``MissingAnnotation`` for the first pass that some layer has nothing for."""
    layers = list(graph.layers())
    provided: list[type[Annotation]] = []
    for step in plan.passes():
        for kind in step.needs():
            if any(issubclass(earlier, kind) for earlier in provided):
                continue
            lacking = _lacking(layers, graph, kind)
            if not lacking:
                continue
            slot = kind.slot_name()
            shown = [n for n in lacking if isinstance(graph.annotations(n).get(slot), Summary)]
            if shown:
                raise MissingAnnotation(
                    f"{step.name} reads @{slot}, of which the text shows a summary",
                    where=[f"%{name}" for name in shown],
                    help="give the .qdc dump, or the text in full: qdc show --full",
                )
            raise MissingAnnotation(
                f"{step.name} reads @{slot}, which {len(lacking)} of {len(layers)} layers lack",
                where=[f"%{name}" for name in lacking],
                help="run a pass that provides it before: qdc passes",
            )
        provided += step.provides
    read = dict.fromkeys(kind for step in plan.passes() for kind in step.needs())
    present = [kind for kind in read if not _lacking(layers, graph, kind)]
    forbidden = dict.fromkeys(kind for step in plan.passes() for kind in step.forbids)
    # One layer is enough, and so is the summary of a text.
    slots = {slot for node in layers for slot in graph.annotations(node.name)}
    present += [kind for kind in forbidden if kind.slot_name() in slots and kind not in present]
    check_order(plan, present=tuple(present))


def _lacking(layers: Sequence[Node], graph: LayerGraph, kind: type[Annotation]) -> list[str]:
    """Names of the layers without an annotation of this kind."""
    return [node.name for node in layers if graph.get(node.name, kind) is None]


class _Asking(Instrument):
    """Knows which pass is running, to name it."""

    def __init__(self) -> None:
        self.name = "a pass"

    def before(self, place: int, unit: Unit) -> None:
        """It runs now."""
        self.name = unit.step.name

    def refuse(self, what: str) -> MissingWeights:
        """The error for what it asks for."""
        return MissingWeights(f"{self.name} asks for {what}, and a dump has none", help=HELP)


class _NoCheckpoint:
    """Stands where a checkpoint does, and refuses whatever is asked of it."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse

    def tensor(self, name: str) -> Tensor:
        raise self._refuse(f"the weight {name}")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._refuse("the checkpoint")


class _Named(TensorTable):
    """Knows the names of all tensors of a graph, and holds those that passes put."""

    def __init__(self, graph: LayerGraph, refuse: Refuse) -> None:
        super().__init__()
        self._refuse = refuse
        self._absent = set(_references(graph))
        for ref in self._absent:
            self.know(ref)

    def get(self, ref: TensorRef) -> Tensor:
        if ref in self._absent:
            raise self._refuse(f"the tensor {ref.name}")
        return super().get(ref)


class _Bare(Workspace):
    """Makes no stream: there is nothing to move through the model."""

    refuse: Refuse

    def stream(self, *arguments: Any, **options: Any) -> Any:
        raise self.refuse("a run of the model")

    def loose_stream(self, *arguments: Any, **options: Any) -> Any:
        raise self.refuse("a run of the model")


def _references(graph: LayerGraph) -> Iterator[TensorRef]:
    notes: Iterable[Annotation] = (
        note for node in graph for note in graph.annotations(node.name).values()
    )
    for note in notes:
        yield from note.refs()
