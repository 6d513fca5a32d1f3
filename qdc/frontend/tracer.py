"""Trace a model with ``torch.fx`` into a layer graph.

Leaves are the modules that do the arithmetic (linear, embedding, norm, rotary, attention); what
stands between them becomes function nodes. Names come from module paths, shapes from a run on the
meta device with two prime sizes for batch and length, which no width of a model equals.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument, Target

from qdc.checkpoint.folder import Checkpoint
from qdc.errors import UnsupportedModel
from qdc.frontend.calls import NodeCalls
from qdc.frontend.leafshapes import given_by, given_by_element
from qdc.frontend.structure import find_regions
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LINEAR, LayerGraph, Node, Structure
from qdc.ir.routing import GIVE, ROUTED, ROUTER, ROWS
from qdc.ir.types import Dimension, Parameter, ValueType, short_dtype
from qdc.models.canvas import CanvasAttention, OnCanvas, Scalars, Signal, SoftCap
from qdc.models.experts import (
    TRACED_ROWS,
    BiasedRouter,
    Give,
    GroupedRouting,
    Router,
    Routing,
    Rows,
    ScaledRouter,
    ScaledRouting,
    Take,
)
from qdc.models.layers import Attention, ProportionalRotary, RMSNorm, Rotary
from qdc.models.network import Network

LEAVES: dict[type[nn.Module], str] = {
    nn.Linear: LINEAR,
    nn.Embedding: "embedding",
    RMSNorm: "rms-norm",
    Rotary: "rotary",
    ProportionalRotary: "rotary",
    Attention: "attention",
    CanvasAttention: "attention",
    Router: ROUTER,
    BiasedRouter: ROUTER,
    ScaledRouter: ROUTER,
    Routing: "routing",
    GroupedRouting: "routing",
    ScaledRouting: "routing",
    Rows: ROWS,
    Take: "take",
    Give: GIVE,
    Signal: "signal",
    OnCanvas: "on-canvas",
    Scalars: "scalars",
    SoftCap: "soft-cap",
}
BATCH, LENGTH = 7_927, 104_743


@dataclass(frozen=True)
class Program:
    """A traced model: the graph that passes see and what executes it, name by name."""

    graph: LayerGraph
    module: nn.Module
    """On the meta device; its leaves are called with real weights."""
    nodes: Mapping[str, fx.Node | NodeCalls]


class LeafTracer(fx.Tracer):
    """Plain fx tracing that stops at the arithmetic."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether ``m`` is one of ``LEAVES``."""
        return type(m) in LEAVES


def trace(module: nn.Module, facts: ModelFacts, checkpoint: Checkpoint | None = None) -> Program:
    """Trace ``module`` (on meta) and build its layer graph.

    Args:
        module: the model, called as ``module(input_ids, attention_mask=None)``; one with a canvas
            takes a third input.
        facts: what the graph says about the model.
        checkpoint: gives the dtypes of the weights; the module's own without one.

    Raises:
        UnsupportedModel: the model has no repeated blocks, or one that the region finder refuses.
    """
    traced = LeafTracer().trace(module)
    output = next(node for node in traced.nodes if node.op == "output")
    if not isinstance(output.args[0], fx.Node):
        raise UnsupportedModel("the model does not return one tensor, the logits")
    kept = [node for node in traced.nodes if node.op != "output"]
    further = module.further_inputs(BATCH, LENGTH) if isinstance(module, Network) else ()
    values = _Shapes(fx.GraphModule(module, traced)).values(kept, further)
    paths = {node: _path(node) for node in kept}
    prefix = common_prefix([path for node, path in paths.items() if node.op == "call_module"])
    plain = [paths[node].removeprefix(prefix) for node in kept]
    names = dict(zip(kept, unique_names(plain), strict=True))
    stored = {tensor: name for name, tensor in module.named_parameters()}
    nodes = tuple(
        Node(
            name=names[node],
            op=_operation(module, node),
            inputs=tuple(dict.fromkeys(names[arg] for arg in node.all_input_nodes)),
            type=values[node],
            path=paths[node] if node.op == "call_module" else "",
            parameters=_parameters(module, node, stored, checkpoint),
        )
        for node in kept
    )
    regions = find_regions(module, nodes, {names[node]: _stack(node) for node in kept}, prefix)
    structure = Structure(
        name=facts.family, prefix=prefix, model=facts, nodes=nodes, regions=regions
    )
    return Program(LayerGraph(structure), module, {names[node]: node for node in kept})


class _Shapes(fx.Interpreter):
    """Run the graph on meta tensors and note each value's type."""

    def values(self, wanted: list[fx.Node], further: Sequence[Tensor]) -> dict[fx.Node, ValueType]:
        self.found: dict[fx.Node, ValueType] = {}
        input_ids = torch.zeros(BATCH, LENGTH, dtype=torch.int64, device="meta")
        mask = torch.ones(BATCH, LENGTH, dtype=torch.bool, device="meta")
        self.run(input_ids, mask, *further)
        return {node: self.found[node] for node in wanted}

    def call_module(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]
    ) -> Any:
        leaf = self.module.get_submodule(str(target))
        found = None if kwargs else given_by(leaf, args)
        return super().call_module(target, args, kwargs) if found is None else found

    def call_function(
        self, target: Target, args: tuple[Argument, ...], kwargs: dict[str, Any]
    ) -> Any:
        found = None if any(kwargs.values()) else given_by_element(target, args)
        return super().call_function(target, args, kwargs) if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = ValueType(
                dtype=short_dtype(str(result.dtype)), shape=tuple(map(_dimension, result.shape))
            )
        elif n.op != "output":
            raise UnsupportedModel(
                "a value between the layers is no tensor", where=[f"{n.name} = {n.target}"]
            )
        return result


def _dimension(size: int) -> Dimension:
    names = {BATCH: "B", LENGTH: "L", BATCH * LENGTH: "B*L", TRACED_ROWS: ROUTED}
    return names.get(size, size)


def _stack(node: fx.Node) -> tuple[str, ...]:
    """Paths of the modules that a node was traced in, outermost first."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(str(path) for path, _ in stack.values() if path)


def _path(node: fx.Node) -> str:
    """The module path of a leaf; for a function the module that calls it, and the function."""
    if node.op == "call_module":
        return str(node.target)
    inside = _stack(node)
    return ".".join((*inside[-1:], _function(node)))


def _function(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", node.name)


def common_prefix(paths: Sequence[str]) -> str:
    """The dotted start that all leaf modules share, with its dot."""
    levels = zip(*(path.split(".")[:-1] for path in paths), strict=False)
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, levels)
    return "".join(f"{parts[0]}." for parts in shared)


def unique_names(plain: Sequence[str]) -> list[str]:
    """The same names, numbered from the second use on."""
    taken, used, names = set(plain), dict[str, int](), []
    for name in plain:
        count = used.get(name, 0) + 1
        while count > 1 and f"{name}_{count}" in taken:
            count += 1
        used[name] = count
        names.append(name if count == 1 else f"{name}_{count}")
    return names


def _operation(module: nn.Module, node: fx.Node) -> str:
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        return LEAVES[type(module.get_submodule(str(node.target)))]
    return _function(node).strip("_").replace("_", "-")


def _parameters(
    module: nn.Module,
    node: fx.Node,
    stored: Mapping[nn.Parameter, str],
    checkpoint: Checkpoint | None,
) -> tuple[Parameter, ...]:
    """The tensors of a leaf under the names that they are stored by, one for tied leaves."""
    if node.op != "call_module":
        return ()
    found = []
    for role, tensor in module.get_submodule(str(node.target)).named_parameters(recurse=False):
        name = stored[tensor]
        dtype = short_dtype(str(tensor.dtype))
        if checkpoint is not None and name in checkpoint:
            dtype = checkpoint.headers[name].dtype
        found.append(Parameter(name=name, role=role, dtype=dtype, shape=tuple(tensor.shape)))
    return tuple(found)
