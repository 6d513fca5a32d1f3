"""Execute part of a traced model, node by node, from values that are at hand."""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from qdc.frontend.segment import Segment, Sizes
from qdc.frontend.tracer import Program
from qdc.ir.graph import LINEAR

Environment = dict[str, Tensor]
Parameters = Mapping[str, Mapping[str, Tensor]]
"""By node and role: what every executed node computes with."""


class Executor:
    """Runs nodes of a program. Gradients flow unless the caller switches them off."""

    def __init__(self, program: Program, device: torch.device) -> None:
        """Index the nodes; the inputs but for the token ids are absent."""
        self.program, self.device = program, device
        self.graph = program.graph
        self.order = [node.name for node in self.graph]
        self.place = {name: index for index, name in enumerate(self.order)}
        self._names = {
            node: name for name, node in program.nodes.items() if isinstance(node, fx.Node)
        }
        self.tokens, *self.absent = [node.name for node in self.graph if node.op == "input"]
        self.edges = self.graph.edges.copy()
        self.edges.remove_nodes_from(self.absent)
        self.linear_calls = 0
        """Linears executed, counted once for each sample."""

    def steps(self, wanted: Collection[str], held: Collection[str]) -> list[str]:
        """Nodes to execute, in order, to get the wanted values from the held ones."""
        needed = set[str]()
        pending = [name for name in wanted if name not in held]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                pending.extend(p for p in self.edges.predecessors(name) if p not in held)
        return sorted(needed, key=self.place.__getitem__)

    def read_after(self, boundary: int) -> frozenset[str]:
        """Values from before this place of the order that nodes from it on read."""
        future = set(self.order[boundary:])
        return frozenset(
            name
            for name in self.order[:boundary]
            if name not in self.absent and future.intersection(self.edges.successors(name))
        )

    def run(
        self,
        held: Mapping[str, Tensor],
        steps: list[str],
        parameters: Parameters,
        wanted: Collection[str],
    ) -> Environment:
        """Execute the steps on one batch, dropping each value after its last reader.

        Args:
            held: values at hand, on any device and in any floating dtype; computed with in fp32.
            steps: as ``steps(wanted, held)`` gives them.
            parameters: of every step.
            wanted: the values to return.

        Returns:
            The wanted values, on the device.
        """
        last = {read: step for step in steps for read in self.edges.predecessors(step)}
        environment = {name: self._widen(value) for name, value in held.items()}
        sizes = self._sizes(held)
        for step in steps:
            environment[step] = self._execute(step, environment, parameters[step], sizes)
            for read in self.edges.predecessors(step):
                if last[read] == step and read not in wanted:
                    environment.pop(read, None)
        return {name: environment[name] for name in wanted}

    def _widen(self, value: Tensor) -> Tensor:
        """What is computed with is fp32, however narrow it was held."""
        wide = torch.float32 if value.is_floating_point() else value.dtype
        return value.to(self.device, wide)

    def _sizes(self, held: Mapping[str, Tensor]) -> Sizes:
        """Batch and length, from values at hand whose types name them."""
        found: dict[int | str, int] = {}
        for name, value in held.items():
            found.update(zip(self.graph[name].type.shape, value.shape, strict=True))
        return found.get("B", 0), found.get("L", 0)

    def _execute(
        self,
        name: str,
        environment: Environment,
        parameters: Mapping[str, Tensor],
        sizes: Sizes,
    ) -> Tensor:
        node = self.program.nodes[name]
        if isinstance(node, Segment):
            if self.graph[name].op == LINEAR:
                self.linear_calls += len(environment[self.graph[name].inputs[0]])
            return node.run(environment, parameters, sizes, self.device)
        arguments: Any
        keywords: Any
        arguments, keywords = fx.map_arg(
            (node.args, node.kwargs), lambda read: environment.get(self._names[read])
        )
        result: Tensor
        if node.op == "call_module":
            if self.graph[name].op == LINEAR:
                self.linear_calls += len(arguments[0])
            leaf = self.program.module.get_submodule(str(node.target))
            result = functional_call(leaf, dict(parameters), arguments, keywords)
        elif node.op == "call_method":
            result = getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
        else:
            result = node.target(*arguments, **keywords)  # type: ignore[operator]
        return result
