"""Trace a torch module that a caller holds in memory: any class, with no configuration.

A copy without the values of its parameters is exported, as the classes of transformers are; the
module itself is neither changed nor stored. What a configuration would say is found in the trace,
or asked for.
"""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qdc.checkpoint.held import HeldModule
from qdc.errors import QdcError, UnsupportedModel
from qdc.frontend.body import BodyModel
from qdc.frontend.calls import NodeCalls
from qdc.frontend.coverage import check_tensors, mark_kept
from qdc.frontend.direction import find_attentions
from qdc.frontend.exported import export_graph
from qdc.frontend.tracer import Program
from qdc.ir.dump import to_bytes
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import EMBEDDING, LayerGraph

UNBOUNDED = 1 << 40
"""Stands for the longest input of a model whose trace has no bound."""
SHORTER = (12, 6)
"""Tokens of further examples, where nothing is known of the longest input."""
UNREAD = "forward does not read it"
PROBE = 12
"""Tokens of the input on which the direction is tried."""
WRAP = (
    "wrap it: class Model(nn.Module) with the module as an attribute, and forward(self, input_ids) "
    "that gives it everything else and returns the logits"
)


@dataclass(frozen=True)
class GivenFacts:
    """What a caller says of a module; None is found in the trace, if it can be."""

    mask_token_id: int | None = None
    vocabulary: int | None = None
    max_length: int | None = None
    logits_shift: int = 0


class GivenModel(BodyModel):
    """A caller's module, called with token ids alone."""

    untraceable: ClassVar[str] = (
        "forward must not branch on the values of tensors, nor set attributes: compute tables "
        "(of rotary embeddings) in forward, or register them as buffers"
    )

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input_ids: Tensor) -> Tensor:
        """``i64[batch, T] -> [batch, T, vocab]`` logits, wherever the module puts them."""
        return find_logits(self.body(input_ids))

    @property
    def owned(self) -> dict[str, Tensor]:
        """Its parameters; buffers are constants of the trace."""
        return dict(self.body.named_parameters(remove_duplicate=False))

    def example(self) -> nn.Module:
        """The model itself: it is a copy without values."""
        return self


def find_logits(found: object) -> Tensor:
    """The logits in what a module returns: a tensor, the first of a tuple, or ``logits`` of it.

    Raises ``UnsupportedModel`` if there are none.
    """
    logits: object = found
    if isinstance(found, Mapping):
        logits = found.get("logits")
    elif isinstance(found, tuple | list) and found:
        logits = getattr(found, "logits", found[0])
    elif not isinstance(found, Tensor):
        logits = getattr(found, "logits", None)
    if not isinstance(logits, Tensor):
        raise UnsupportedModel(
            f"the module returns {type(found).__name__}, in which qdc finds no logits",
            help="return the logits, a tuple that begins with them, or an object with logits",
        )
    return logits


def open_given(
    module: nn.Module, held: HeldModule, given: GivenFacts
) -> tuple[HeldModule, Program]:
    """Trace a module and check that every tensor has a place, as ``open_model`` does of a folder.

    Args:
        module: on any device, in any mode; it is left as it is.
        held: its tensors.
        given: what the caller says of it.

    Raises:
        UnsupportedModel: the module cannot be traced, or holds what qdc does not compile.
        QdcError: something that the trace does not show has to be given.
    """
    check_signature(module)
    native = GivenModel(_copy(module))
    known = UNBOUNDED if given.max_length is None else given.max_length
    first = ModelFacts(
        family=native.kind,
        mask_token_id=given.mask_token_id,
        vocabulary=given.vocabulary or UNBOUNDED,
        max_length=known,
    )
    traced = _trace(native, first, held)
    graph = LayerGraph(
        traced.graph.structure.model_copy(update={"model": _facts(module, traced, given)})
    )
    unread = {n: UNREAD for n in held.headers if n not in _read(graph)}
    held.leave_out(unread)
    check_tensors(graph, held)
    held.describe(graph.model.model_dump(mode="json"), traced=_digest(graph, traced))
    mark_kept(graph)
    return held, Program(graph, traced.module, traced.nodes)


def _digest(graph: LayerGraph, traced: Program) -> str:
    """Of what is computed: the graph, and all that its nodes call; weights are digested elsewhere.

    Modules of equal weights may differ in what no weight holds: another epsilon, scale, table.
    """
    found = sha256(to_bytes(graph))
    for node in graph:
        calls = traced.nodes.get(node.name)
        if isinstance(calls, NodeCalls):
            for part in calls.written():
                found.update(len(part).to_bytes(8, "little") + part)
    return found.hexdigest()


def _trace(native: GivenModel, facts: ModelFacts, held: HeldModule) -> Program:
    """Export it, with a shorter example if the module does not take the usual one."""
    try:
        return export_graph(native, facts, held)
    except UnsupportedModel:
        for length in SHORTER:
            with suppress(UnsupportedModel):
                return export_graph(native, facts, held, length)
        raise


def check_signature(module: nn.Module) -> None:
    """Raise ``UnsupportedModel`` if forward needs more than token ids."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ids = next((each for each in parameters if each.kind in kinds), None)
    taken = ids is not None or any(each.kind is each.VAR_POSITIONAL for each in parameters)
    needed = [
        each.name
        for each in parameters
        if each is not ids
        and each.default is inspect.Parameter.empty
        and each.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    ]
    if needed or not taken:
        raise UnsupportedModel(
            f"forward of {type(module).__name__} needs "
            + (f"{', '.join(needed)} beside token ids" if taken else "no token ids"),
            help=WRAP,
        )


def _copy(module: nn.Module) -> nn.Module:
    """A copy on the CPU in fp32, in eval mode, whose parameters have no values: nothing is read."""
    memo: dict[int, Any] = {}
    for parameter in module.parameters():
        dtype = torch.float32 if parameter.is_floating_point() else parameter.dtype
        empty = torch.empty(parameter.shape, dtype=dtype)
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=False)
    try:
        copied = deepcopy(module, memo)
    except Exception as error:  # each module raises what it likes
        raise UnsupportedModel(
            f"{type(module).__name__} cannot be copied: {error}",
            help="keep no results of computations as attributes",
        ) from error
    return copied.to("cpu").float().eval().requires_grad_(False)


def _facts(module: nn.Module, traced: Program, given: GivenFacts) -> ModelFacts:
    """What the trace shows of the model. Raises ``QdcError`` for what has to be given."""
    graph = traced.graph
    tokens = next(node.name for node in graph if node.op == "input")
    tables = [node for node in graph if node.op == EMBEDDING]
    sizes = [int(node.weight.shape[0]) for node in tables if node.inputs == (tokens,)]
    vocabulary = given.vocabulary or min(sizes, default=None)
    if vocabulary is None:
        raise QdcError(
            "the trace shows no embedding of the token ids: how many are there?",
            help="give vocabulary=",
        )
    if sizes and vocabulary > min(sizes):
        raise QdcError(f"vocabulary={vocabulary} is more than the {min(sizes)} embeddings")
    mask = given.mask_token_id
    if mask is not None and not 0 <= mask < vocabulary:
        raise QdcError(f"mask_token_id={mask} is outside the {vocabulary} embeddings")
    positions = [int(node.weight.shape[0]) for node in tables if _counts(graph, node.name)]
    length = min([graph.model.max_length, *positions])
    if length >= UNBOUNDED:
        raise QdcError(
            "the trace shows no longest input: the module has no table of positions",
            help="give max_length=, the tokens of the longest input that it was trained on",
        )
    if given.max_length is not None and given.max_length > length:
        raise QdcError(f"max_length={given.max_length} is more than the module's {length} tokens")
    _check_result(graph)
    causal = _is_causal(module, traced, mask, vocabulary)
    return ModelFacts(
        family=graph.model.family,
        mask_token_id=mask,
        vocabulary=vocabulary,
        max_length=length,
        logits_shift=1 if causal else given.logits_shift,
        attention_block=1 if causal else None,
    )


def _counts(graph: LayerGraph, name: str) -> bool:
    """Whether the rows of an embedding are looked up by place: by a count, and by no token."""
    found, pending = set[str](), [name]
    while pending:
        for read in graph[pending.pop()].inputs:
            if read not in found:
                found.add(read)
                pending.append(read)
    operations = {graph[read].op for read in found}
    return "arange" in operations and "input" not in operations


def _check_result(graph: LayerGraph) -> None:
    """Logits of every position. Raises ``UnsupportedModel``."""
    shape = list(graph)[-1].type.shape
    if len(shape) != 3 or shape[:2] != ("B", "L"):
        raise UnsupportedModel(
            f"the module returns {list(shape)}, not logits [batch, length, vocabulary]",
            help="return the logits of every position: nanoGPT gives those of the last alone "
            f"unless it has targets; {WRAP}",
        )


def _is_causal(module: nn.Module, traced: Program, mask: int | None, vocabulary: int) -> bool:
    """Whether a position sees just those before it, which no model that fills gaps does.

    Raises ``UnsupportedModel`` for a masked model that does, and where it cannot be told.
    """
    attentions, one_sided = find_attentions(traced.graph, traced.nodes)
    if attentions:
        causal, some = len(one_sided) == len(attentions), bool(one_sided)
    else:
        ahead = _sees_ahead(module, vocabulary)
        causal, some = not ahead, not ahead
    if mask is not None and some:
        raise UnsupportedModel(
            "a mask token is given, and attention reads to one side only",
            where=[f"%{name}" for name in one_sided],
            help="switch is_causal off; or leave mask_token_id out and choose geometry=clean for "
            "a model that predicts the next token",
        )
    return causal


@torch.no_grad()
def _sees_ahead(module: nn.Module, vocabulary: int) -> bool:
    """Try whether the last token changes what is predicted before it, where no call says it."""
    device = next(module.parameters()).device
    ids = torch.arange(PROBE, device=device).remainder(vocabulary)[None]
    first, last = ids.clone(), ids.clone()
    first[0, 0], last[0, -1] = (ids[0, 0] + 1) % vocabulary, (ids[0, -1] + 1) % vocabulary
    modes = {each: each.training for each in module.modules()}
    module.eval()
    try:
        plain, ahead, behind = (find_logits(module(each)) for each in (ids, last, first))
    finally:
        for each, training in modes.items():
            each.training = training
    if torch.equal(plain[:, 1:], behind[:, 1:]) and torch.equal(plain[:, :-1], ahead[:, :-1]):
        raise UnsupportedModel(
            "no token changes what the module predicts elsewhere, and it calls no "
            "scaled_dot_product_attention: qdc cannot tell in which direction it reads"
        )
    return not torch.equal(plain[:, :-1], ahead[:, :-1])


def _read(graph: LayerGraph) -> set[str]:
    return {parameter.name for node in graph for parameter in node.parameters}
