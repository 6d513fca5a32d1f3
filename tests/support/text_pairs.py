"""One pass from text to text: the graph is read, the pass runs, the graph is printed.

The first lines of the text before say what runs and on what:

    # passes abmp-allocate{ratio=0.25}
    # on annotations

On ``annotations`` there are no weights, as in ``qdc opt``. On ``weights`` each weight is a fixed
random matrix. On ``model`` the graph is the one of a tiny checkpoint, with its weights and with
text to calibrate on. A tensor whose digest is all zeros is made up for its kind of annotation.
"""

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast
from zlib import crc32

import torch
from torch import Tensor, nn

from qdc.checkpoint.folder import Checkpoint
from qdc.compiling.instruments import GraphVerifier
from qdc.compiling.rewriting import rewrite
from qdc.compiling.runner import Runner
from qdc.format.codec import Lowered
from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.frontend.opening import open_model
from qdc.frontend.tracer import Program
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Factor, Moment
from qdc.ir.cross import CrossMoment
from qdc.ir.graph import LayerGraph, Node
from qdc.ir.parser import parse
from qdc.ir.printer import render
from qdc.ir.types import TensorRef
from qdc.numerics.blocks import block_slices
from qdc.numerics.components import Components
from qdc.numerics.factor import factorize
from qdc.numerics.uniform import fit_uniform
from qdc.pipeline.builder import build_plan
from qdc.pipeline.registry import standard_registry
from qdc.streaming.calibration import Calibration
from qdc.streaming.states import StateStore
from qdc.streaming.workspace import Workspace
from qdc.text.source import TextSource
from qdc.text.tokenizer import encoder, load_tokenizer
from tests.support.checkpoints import write_checkpoint
from tests.support.texts import TEXT
from tests.support.units import Weights, correlated_moment, noise

HEADER = re.compile(r"# passes (?P<passes>.+)\n# on (?P<on>annotations|weights|model)\n")
UNKNOWN = "0" * 64
"""Digest of a tensor that is to be made up."""
WIDTH, HIDDEN = 32, 48


def rewritten(text: str, folder: Path) -> str:
    """The text after the passes.

    On annotations alone it is in full, and what the passes remark stands below it: there nothing
    depends on how a processor rounds.

    Args:
        text: the text before, its first lines as above.
        folder: an empty one, for a checkpoint.
    """
    header = HEADER.match(text)
    assert header is not None, "the first lines say what runs and on what"
    registry = standard_registry()
    tags = registry.annotations()
    graph = parse(text, tags)
    plan = build_plan(header["passes"], registry)
    if header["on"] == "annotations":
        said = rewrite(graph, plan, tags)
        return "\n".join([render(graph, full=True), *said])
    make = _model if header["on"] == "model" else _weights
    workspace = make(graph, folder)
    _make_up_tensors(workspace)
    for step in plan.passes():
        step.check(graph)
    with tempfile.TemporaryDirectory() as scratch:
        runner = Runner(plan, workspace, (GraphVerifier(),), Path(scratch))
        runner.run(lambda region: None)
    graph.after = f"{graph.after},{plan}" if graph.after else str(plan)
    return render(graph)


def _weights(graph: LayerGraph, folder: Path) -> Workspace:
    found = {
        node.weight.name: noise(node.rows, node.columns, seed=crc32(node.name.encode()))
        for node in graph.linears()
    }
    checkpoint = cast(Checkpoint, Weights(found))
    return Workspace(Program(graph, nn.Module(), {}), checkpoint, torch.device("cpu"), None)


def write_model(folder: Path) -> Path:
    """The tiny checkpoint: one block, in fp32."""
    return write_checkpoint(
        folder, d_model=WIDTH, mlp_hidden_size=HIDDEN, n_layers=1, dtype=torch.float32
    )


def _model(graph: LayerGraph, folder: Path) -> Workspace:
    model = write_model(folder / "model")
    checkpoint, program = open_model(model)
    assert graph.structure == program.graph.structure, "the text is not the one of the tiny model"
    source = TextSource("text.txt", "", [TEXT])
    return Workspace(
        Program(graph, program.module, program.nodes),
        checkpoint,
        torch.device("cpu"),
        Calibration(source, encoder(load_tokenizer(model))),
        states=StateStore(torch.float32),
    )


def _make_up_tensors(workspace: Workspace) -> None:
    """Put a tensor in the table for each reference without a digest."""
    graph = workspace.program.graph
    for node in graph:
        for note in list(graph.annotations(node.name).values()):
            if any(ref.digest == UNKNOWN for ref in note.refs()):
                graph.annotate(node.name, _with_tensors(workspace, node, note))


def _with_tensors(workspace: Workspace, node: Node, note: Annotation) -> Annotation:
    def put(ref: TensorRef, tensor: Tensor) -> TensorRef:
        found = workspace.tensors.put(ref.name, tensor)
        assert (found.dtype, found.shape) == (ref.dtype, ref.shape), f"{ref.name} is {found}"
        return found

    if isinstance(note, Lowered):
        working = _working(note, workspace.parameter(node))
        refs = [put(r, working[s]) for s, r in zip(note.suffixes, note.tensors, strict=True)]
        return note.model_copy(update={"tensors": tuple(refs)})
    made: Mapping[type[Annotation], Callable[[int], Tensor]] = {
        Moment: correlated_moment,
        Factor: lambda columns: factorize(correlated_moment(columns)).upper,
        CrossMoment: lambda columns: correlated_moment(columns) / 8,
    }
    assert isinstance(note, Moment | Factor | CrossMoment), f"@{note.tag} has tensors of its own"
    return note.model_copy(update={"tensor": put(note.tensor, made[type(note)](node.columns))})


def _working(note: Lowered, weight: Tensor) -> dict[str, Tensor]:
    """Codes of the weight itself; signs in stripes, with scales that are powers of two."""
    codec = note.codec
    if isinstance(codec, UniformGrid):
        parts = block_slices(codec.columns, codec.group)
        grids = [fit_uniform(weight[:, p], codec.bits, "minmax", codec.zero) for p in parts]
        return UniformGrid.working(grids, codec.group, codec.zero)
    assert isinstance(codec, MultiBinary)
    blocks = []
    for order, part in zip(codec.orders, codec.column_blocks, strict=True):
        width = part.stop - part.start
        places = torch.arange(order * codec.rows * width).reshape(order, codec.rows, width)
        signs = torch.where(places % 3 == 0, 1, -1).to(torch.int8)
        scales = 2.0 ** -torch.arange(1, order + 1)
        blocks.append(
            Components(signs, scales[:, None].expand(order, codec.rows), torch.ones(order, width))
        )
    return MultiBinary.working(blocks, codec.block)
