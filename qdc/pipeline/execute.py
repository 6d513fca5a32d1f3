"""Execute part of a traced model, node by node, from values that are at hand."""

from bisect import bisect_left
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from qdc.frontend.tracer import Program
from qdc.ir.graph import LINEAR
from qdc.ir.routing import ROUTED

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
        self._names = {node: name for name, node in program.nodes.items()}
        self.tokens, *self.absent = [node.name for node in self.graph if node.op == "input"]
        self.edges = self.graph.edges.copy()
        self.edges.remove_nodes_from(self.absent)
        self.linear_calls = 0
        """Linears executed, counted once for each sample; without those of experts."""
        self.routed_rows = 0
        """Linears of experts executed, counted once for each token."""
        self._bounds, self._live = self._read_across_regions()

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
        index = bisect_left(self._bounds, boundary)
        later = {
            name
            for step in self.order[boundary : self._bounds[index]]
            if step not in self.absent
            for name in self.edges.predecessors(step)
        }
        found = later | self._live[index]
        return frozenset(name for name in found if self.place[name] < boundary)

    def derived(self, name: str, boundary: int) -> set[str]:
        """Values from before this place of the order that hang on a node, itself included."""
        found, pending = {name}, [name]
        while pending:
            for reader in self.edges.successors(pending.pop()):
                if reader not in found and self.place[reader] < boundary:
                    found.add(reader)
                    pending.append(reader)
        return found

    def _read_across_regions(self) -> tuple[list[int], list[frozenset[str]]]:
        """Ends of the regions and of the model, and what nodes from each of them on read.

        It is worked out once: a region of many experts has many boundaries, each of which then
        looks no further than the region's end.
        """
        last = {
            read: self.place[step]
            for step in self.order
            if step not in self.absent
            for read in self.edges.predecessors(step)
        }
        ends = {self.place[region.nodes[-1]] + 1 for region in self.graph.regions}
        bounds = sorted(ends | {len(self.order)})
        live: set[str] = set()
        found: list[frozenset[str]] = []
        for start, end in zip([0, *bounds], bounds, strict=False):
            live |= {name for name in self.order[start:end] if name in last}
            live = {name for name in live if last[name] >= end}
            found.append(frozenset(live))
        return bounds, found

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
        environment = {name: self._widen(held[name]) for name in {*last, *wanted} & set(held)}
        for step in steps:
            environment[step] = self._execute(step, environment, parameters[step])
            for read in self.edges.predecessors(step):
                if last[read] == step and read not in wanted:
                    environment.pop(read, None)
        return {name: environment[name] for name in wanted}

    def _widen(self, value: Tensor) -> Tensor:
        """What is computed with is fp32, however narrow it was held."""
        wide = torch.float32 if value.is_floating_point() else value.dtype
        return value.to(self.device, wide)

    def _execute(
        self, name: str, environment: Environment, parameters: Mapping[str, Tensor]
    ) -> Tensor:
        node = self.program.nodes[name]
        arguments: Any
        keywords: Any
        arguments, keywords = fx.map_arg(
            (node.args, node.kwargs), lambda read: environment.get(self._names[read])
        )
        result: Tensor
        if node.op == "call_module":
            if self.graph[name].op == LINEAR:
                if self.graph[name].type.shape[:1] == (ROUTED,):
                    self.routed_rows += len(arguments[0])
                else:
                    self.linear_calls += len(arguments[0])
            leaf = self.program.module.get_submodule(str(node.target))
            result = functional_call(leaf, dict(parameters), arguments, keywords)
        elif node.op == "call_method":
            result = getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
        else:
            result = node.target(*arguments, **keywords)  # type: ignore[operator]
        return result
