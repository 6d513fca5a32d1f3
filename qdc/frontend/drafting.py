"""From groups of exported calls to nodes: names, operations, types, parameters, and what runs them.

A parameter is found by its placeholder, whose name the signature of the export gives; a size by its
expression in batch and length.
"""

import functools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import UnsupportedModel
from qdc.frontend.body import PREFIX, BodyModel
from qdc.frontend.calls import ATTENTION_CALL, LINEAR_CALL, NodeCalls, Sizes
from qdc.frontend.grouping import CallGroup, Calls, aten, stack, takes_apart
from qdc.frontend.repeated import repeat_experts
from qdc.frontend.tracer import unique_names
from qdc.ir.graph import EMBEDDING, LINEAR, Node
from qdc.ir.keys import file_key
from qdc.ir.routing import ROUTED
from qdc.ir.types import Dimension, Parameter, ValueType, short_dtype

RAW, ROUTER = "raw-linear", "router"
"""Linears that are not quantized: with a weight of no module, and what chooses experts."""


@dataclass(frozen=True)
class NodeDraft:
    """A node before its name is known to be free."""

    name: str
    op: str
    path: str
    type: ValueType
    parameters: tuple[Parameter, ...]
    stack: tuple[str, ...]

    def node(self, name: str, inputs: tuple[str, ...]) -> Node:
        """The node, once name and inputs are known."""
        return Node(
            name=name,
            op=self.op,
            inputs=inputs,
            type=self.type,
            path=self.path,
            parameters=self.parameters,
        )


class Drafting:
    """Turns groups of calls into nodes."""

    def __init__(
        self,
        native: BodyModel,
        exported: ExportedProgram,
        checkpoint: Checkpoint | None,
        experts: Mapping[str, int],
    ) -> None:
        """Take an export apart.

        Args:
            native: the whole model.
            exported: of it, with the first expert of each block alone; the others are written.
            checkpoint: gives the dtypes of the weights; the module's own without one.
            experts: by the path of each block's experts how many there are.
        """
        self.native, self.checkpoint = native, checkpoint
        self.owned, self.tied = native.owned, native.tied
        placeholders = {n.name: n for n in exported.graph.nodes if n.op == "placeholder"}
        self.parameters: dict[fx.Node, str] = {}
        """Placeholders of what a checkpoint holds, and the module's own name of it."""
        self.constants: dict[fx.Node, Tensor] = {}
        self.tokens = placeholders["input_ids"]
        for spec in exported.graph_signature.input_specs:
            if spec.kind == InputKind.USER_INPUT or spec.target is None:
                continue
            name, node = spec.target.removeprefix(PREFIX), placeholders[spec.arg.name]
            if name in self.owned:
                self.parameters[node] = name
            elif spec.kind == InputKind.BUFFER:
                self.constants[node] = native.body.get_buffer(name)
            else:
                self.constants[node] = exported.constants[spec.target]
        self.parameters |= repeat_experts(exported.graph, experts, self.parameters)
        self.letters = _letters(self.tokens)
        self.calls = Calls(exported.graph, _result(exported))
        strange = [n.name for n in exported.graph.nodes if n.op == "get_attr"]
        if strange:
            raise UnsupportedModel("the export holds graphs inside the graph", where=strange)

    def type(self, node: fx.Node) -> ValueType:
        """The type of a value. Raises ``UnsupportedModel`` for sizes that depend on values."""
        value: Tensor = node.meta["val"]
        return ValueType(
            dtype=short_dtype(str(value.dtype)),
            shape=tuple(self._dimension(size, node) for size in value.shape),
        )

    def draft(self, group: CallGroup) -> NodeDraft:
        """Name, operation and parameters of a group."""
        last = group.calls[-1]
        paths = tuple(stack(last, PREFIX))
        roles = self._roles(group)
        op = self._operation(group)
        path = group.module if group.whole or op in (LINEAR, EMBEDDING, ROUTER) else ""
        name = path or ".".join((*paths[-1:], _function(last)))
        if not path and len(roles) == 1:
            path = self.parameters[next(iter(roles))].rpartition(".")[0]
        return NodeDraft(
            name=name,
            op=op,
            path=path,
            type=self.type(last),
            parameters=tuple(self._parameter(node, role) for node, role in roles.items()),
            stack=paths,
        )

    def calls_of(self, group: CallGroup, named: Mapping[fx.Node, str]) -> NodeCalls:
        """What executes a group, once every value has its name."""
        calls = self.calls.with_tuples(group.calls)
        inside, all_roles = set(calls), self._roles(group)
        inputs: dict[fx.Node, str] = {}
        roles: dict[fx.Node, str] = {}
        constants: dict[fx.Node, Tensor] = {}
        sizes: dict[fx.Node, Callable[[Sizes], int]] = {}
        same: dict[fx.Node, fx.Node] = {}
        for read in dict.fromkeys(read for call in calls for read in call.all_input_nodes):
            source = self.calls.resolve(read)
            if source in inside:
                same[read] = source
            elif source in all_roles:
                roles[read] = all_roles[source]
            elif source in self.constants:
                constants[read] = self.constants[source]
            elif source in named:
                inputs[read] = named[source]
            else:
                sizes[read] = self._size(source)
        return NodeCalls(calls, inputs, roles, constants, sizes, same)

    def _roles(self, group: CallGroup) -> dict[fx.Node, str]:
        """Parameters that a group reads, in order, and the role of each: the end of its name."""
        calls = self.calls.with_tuples(group.calls)
        reads = dict.fromkeys(
            self.calls.resolve(read) for call in calls for read in call.all_input_nodes
        )
        found = [read for read in reads if read in self.parameters]
        plain = [self.parameters[node].rpartition(".")[2] for node in found]
        return dict(zip(found, unique_names(plain), strict=True))

    def _parameter(self, node: fx.Node, role: str) -> Parameter:
        own = self.parameters[node]
        name, tensor = self.tied.get(own, own), self.owned[own]
        dtype = short_dtype(str(tensor.dtype))
        if self.checkpoint is not None and name in self.checkpoint:
            dtype = self.checkpoint.headers[name].dtype
        return Parameter(name=name, role=role, dtype=dtype, shape=tuple(tensor.shape))

    def _operation(self, group: CallGroup) -> str:
        last = group.calls[-1]
        if last.target is LINEAR_CALL:
            weights = all(
                self.calls.resolve(n) in self.parameters for n in last.all_input_nodes[1:]
            )
            if not weights or file_key(group.module) not in self.owned:
                return RAW
            module = self.native.body.get_submodule(group.module)
            return ROUTER if "Router" in type(module).__name__ else LINEAR
        if last.target is aten.embedding.default:
            owned = self.calls.resolve(last.all_input_nodes[0]) in self.parameters
            return EMBEDDING if owned else "lookup"
        if group.whole and len(group.calls) > 1:
            return _kind(self.native.body.get_submodule(group.module))
        return _function(last).replace("_", "-")

    def _dimension(self, size: int | torch.SymInt, node: fx.Node) -> Dimension:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if expression.is_Integer:
            return int(expression)
        if expression.is_Symbol and expression not in self.letters:
            return ROUTED
        powers = expression.as_powers_dict()
        if not all(base in self.letters and power.is_Integer for base, power in powers.items()):
            raise UnsupportedModel(
                f"a size is neither batch nor length nor their product: {expression}",
                where=[f"{node.name} in {'.'.join(stack(node, PREFIX)[-1:])}"],
            )
        return "*".join(sorted(self.letters[b] for b, n in powers.items() for _ in range(int(n))))

    def _size(self, node: fx.Node) -> Callable[[Sizes], int]:
        """How a size follows from batch and length. Raises ``UnsupportedModel`` if it does not."""
        value = node.meta.get("val")
        if isinstance(value, int):
            return lambda sizes: value
        if not isinstance(value, torch.SymInt) or value.node.expr.free_symbols - set(self.letters):
            raise UnsupportedModel(
                "a number depends on the values of tensors", where=[f"{node.name} = {node.target}"]
            )
        expression = value.node.expr
        order = {symbol: "BL".index(letter) for symbol, letter in self.letters.items()}

        @functools.lru_cache(maxsize=64)
        def size(sizes: Sizes) -> int:
            return int(expression.subs({symbol: sizes[place] for symbol, place in order.items()}))

        return size


def _function(node: fx.Node) -> str:
    """``scaled_dot_product_attention -> attention``; a member of a tuple is called by the tuple."""
    if takes_apart(node):
        return _function(node.all_input_nodes[0])
    if node.target is ATTENTION_CALL:
        return "attention"
    schema = getattr(node.target, "_schema", None)
    name = node.name if schema is None else str(schema.name).rpartition(":")[2]
    return name.strip("_")


def _kind(module: torch.nn.Module) -> str:
    """``LlamaRMSNorm -> rms-norm``, ``GELUActivation -> gelu-activation``."""
    name = type(module).__name__
    if name.endswith("RMSNorm"):
        return "rms-norm"
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", name).lower()


def _letters(tokens: fx.Node) -> dict[Any, str]:
    """The symbols of batch and length. Raises ``UnsupportedModel`` if one is fixed."""
    shape = tokens.meta["val"].shape
    if not all(isinstance(size, torch.SymInt) for size in shape):
        raise UnsupportedModel(
            f"the model's forward takes one size of the input alone: {list(map(str, shape))}",
            help="batch and length must be free",
        )
    return dict(zip((size.node.expr for size in shape), "BL", strict=True))


def _result(exported: ExportedProgram) -> fx.Node:
    names = exported.graph_signature.user_outputs
    if len(names) != 1 or not isinstance(names[0], str):
        raise UnsupportedModel("the model does not return one tensor")
    found: fx.Node = next(n for n in reversed(exported.graph.nodes) if n.name == names[0])
    return found
