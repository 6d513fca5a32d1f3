"""Trace a transformers class with ``torch.export`` into a layer graph.

The second front end, for models without an implementation of our own. ``torch.export`` runs the
class's own forward on meta tensors and notes every call. Linears are found by their call, their
paths by the module stack of the call, their weights by the signature of the graph. Sizes, buffers
and tuples stay inside the nodes (``calls``); which calls become one node: ``grouping``.
"""

import io
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import torch
from torch.export import Dim, ExportedProgram, export

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import UnsupportedModel
from qdc.frontend.body import PREFIX, BodyModel
from qdc.frontend.direction import check_direction
from qdc.frontend.drafting import ROUTER, Drafting
from qdc.frontend.functional import without_mutation
from qdc.frontend.grouping import group_calls
from qdc.frontend.native_config import first_line
from qdc.frontend.repeated import shortened
from qdc.frontend.structure import find_regions
from qdc.frontend.tracer import Program, common_prefix, unique_names
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import EMBEDDING, LINEAR, LayerGraph, Node, Structure

BATCH, LENGTH = 3, 24
"""Sizes of the example that is exported; they are not written into the graph."""


def trace_native(
    native: BodyModel, facts: ModelFacts, checkpoint: Checkpoint | None = None
) -> Program:
    """Export a native model, build its layer graph, and see that it reads to the sides it should.

    Arguments and errors are those of ``export_graph``.
    """
    program = export_graph(native, facts, checkpoint)
    check_direction(program.graph, program.nodes)
    return program


def export_graph(
    native: BodyModel,
    facts: ModelFacts,
    checkpoint: Checkpoint | None = None,
    length: int = LENGTH,
) -> Program:
    """Export a model and build its layer graph.

    Args:
        native: parameters without values, buffers with theirs.
        facts: what the graph says about the model.
        checkpoint: gives the dtypes of the weights; the module's own without one.
        length: tokens of the example that is exported, unless the model takes fewer.

    Raises:
        UnsupportedModel: the export fails, or finds something that qdc does not compile.
    """
    exported, experts = _export(native, min(length, facts.max_length))
    facts = facts.model_copy(update={"max_length": _longest(exported, facts.max_length)})
    builder = Drafting(native, exported, checkpoint, experts)
    groups = group_calls(builder.calls, native.body, PREFIX)
    drafts = [builder.draft(group) for group in groups]
    prefix = common_prefix([draft.path for draft in drafts if draft.path])
    plain = [builder.tokens.name, *(draft.name.removeprefix(prefix) for draft in drafts)]
    tokens, *names = unique_names(plain)
    named = dict(zip((group.calls[-1] for group in groups), names, strict=True))
    named[builder.tokens] = tokens
    calls = {
        name: builder.calls_of(group, named) for name, group in zip(names, groups, strict=True)
    }
    nodes = (
        Node(name=tokens, op="input", type=builder.type(builder.tokens)),
        *(
            draft.node(name, tuple(dict.fromkeys(calls[name].inputs.values())))
            for name, draft in zip(names, drafts, strict=True)
        ),
    )
    stacks = {tokens: (), **{n: d.stack for n, d in zip(names, drafts, strict=True)}}
    regions = find_regions(native.body, nodes, stacks, prefix)
    _refuse_unmapped(nodes, {name for region in regions for name in region.nodes})
    graph = LayerGraph(
        Structure(name=facts.family, prefix=prefix, model=facts, nodes=nodes, regions=regions)
    )
    return Program(graph, native.body, calls)


def _export(native: BodyModel, length: int) -> tuple[ExportedProgram, dict[str, int]]:
    """Export with batch and length open. Raises ``UnsupportedModel`` with torch's reason.

    Returns:
        The export, in which blocks of experts run the first of them alone, and how many each has.
    """
    example = native.example()
    experts = shortened(example)
    device = next((parameter.device for parameter in example.parameters()), None)
    ids = torch.zeros(BATCH, length, dtype=torch.int64, device=device)
    shapes = ({0: Dim.AUTO, 1: Dim.AUTO},)
    try:
        with torch.no_grad(), _quiet():
            exported = export(example, (ids,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # whatever the model's code raises on tensors without values
        raise UnsupportedModel(
            f"torch.export cannot trace {native.kind}: {first_line(error)}",
            help=native.untraceable,
        ) from error
    without_mutation(exported.graph)
    signature = exported.graph_signature
    changed = [*signature.buffers_to_mutate.values(), *signature.user_inputs_to_mutate.values()]
    if changed:
        raise UnsupportedModel(f"{native.kind} changes tensors in its forward", where=changed)
    return exported, experts


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch prints and logs about a failed export: its reason is in the error.

    Whoever sets ``TORCH_LOGS`` asks for it and sees it.
    """
    if "TORCH_LOGS" in os.environ:
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def _longest(exported: ExportedProgram, known: int) -> int:
    """Tokens of the longest input that the exported graph holds for."""
    tokens = next(n for n in exported.graph.nodes if n.name == "input_ids")
    size = tokens.meta["val"].shape[1]
    if isinstance(size, int) or size.node.expr not in exported.range_constraints:
        return known
    upper = exported.range_constraints[size.node.expr].upper
    return min(known, int(upper)) if upper.is_Integer else known


def _refuse_unmapped(nodes: tuple[Node, ...], inside: set[str]) -> None:
    """Every matrix of a block is the weight of a linear: nothing big stays behind in silence."""
    found = [
        f"{parameter} of %{node.name}"
        for node in nodes
        if node.name in inside and node.op not in (LINEAR, EMBEDDING, ROUTER)
        for parameter in node.parameters
        if sum(size > 1 for size in parameter.shape) > 1
    ]
    if found:
        raise UnsupportedModel(
            f"{len(found)} matrices of the blocks are the weights of no linear",
            where=found,
            help="3-D experts, convolutions, transposed linears and weights that forward reads "
            "without calling their linear would stay as they are; qdc compiles a model whose "
            "blocks are made of linears",
        )
