"""The calibration stream: samples on their way through the model, stage by stage.

Between two stages only the frontier of live values is held (``frontier``). Values are computed with
the weights as they are at that moment, so inside ``stages(...)`` each stage sees the quantization
of the stages before it. Every linear is executed once for each sample.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.func import functional_call

from qdc.frontend.tracer import Program
from qdc.ir.graph import LINEAR, Region, Stage
from qdc.ir.types import BYTES
from qdc.pipeline.frontier import values_to_keep

Weights = Callable[[str, str], Tensor]
"""``(node name, role) -> tensor`` in the compute dtype, as it stands now."""
COSTLY = frozenset({LINEAR, "attention", "input", "embedding"})
Environment = dict[str, Tensor]
Parameters = dict[str, dict[str, Tensor]]


class Stream:
    """Batches of samples at one place of the model."""

    def __init__(
        self, program: Program, batches: list[Tensor], weights: Weights, device: torch.device
    ) -> None:
        """Start before the first region.

        Args:
            program: the traced model; its first input takes the token ids, the others are absent.
            batches: ``i64[b, length]`` token ids, no padding.
            weights: gives each parameter as it stands at the time of the call.
            device: where values are computed; they are held on the CPU between stages.
        """
        self.program, self.weights, self.device = program, weights, device
        self.graph = program.graph
        self.order = [node.name for node in self.graph]
        self.place = {name: index for index, name in enumerate(self.order)}
        self.names = {node: name for name, node in program.nodes.items()}
        tokens, *self.absent = [node.name for node in self.graph if node.op == "input"]
        self.edges = self.graph.edges.copy()
        self.edges.remove_nodes_from(self.absent)
        self.boundary = 0
        """Nodes before this place have been computed."""
        self.linear_calls = 0
        """Linears executed, counted once for each sample."""
        self.tokens = torch.cat(batches)
        """``i64[samples, length]``: what was put in."""
        self.sizes = dict(zip("BL", batches[0].shape, strict=True))
        self.kept: list[Environment] = [{tokens: batch} for batch in batches]

    def enter(self, stage: Stage) -> None:
        """Advance to just before the stage's first linear."""
        self._advance(min(self.place[layer] for layer in stage.layers))

    def leave(self, region: Region) -> None:
        """Advance past a region; does nothing if the stream is past it, or if none follows."""
        if region is not self.graph.regions[-1]:
            self._advance(self.place[region.nodes[-1]] + 1)

    def values(self, stage: Stage) -> Iterator[Tensor]:
        """Yield the value that the stage reads, batch by batch: ``[b, length, columns]``."""
        steps = self._steps({stage.value})
        parameters = self._parameters(steps)
        for environment in self.kept:
            yield self._compute(environment, steps, parameters, {stage.value})[stage.value]

    def kept_bytes(self) -> int:
        """Bytes that are held between two stages."""
        return sum(value.nbytes for environment in self.kept for value in environment.values())

    def _advance(self, boundary: int) -> None:
        """Compute what the nodes from ``boundary`` on need, and keep the cheapest part of it."""
        if boundary <= self.boundary:
            return
        future = set(self.order[boundary:])
        needed = {
            name
            for name in self.order[:boundary]
            if name not in self.absent and future.intersection(self.edges.successors(name))
        }
        reach = [*self.kept[0], *self._steps(needed)]
        keep = values_to_keep(
            self.edges,
            reach,
            needed,
            {name: self._nbytes(name) for name in reach},
            [name for name in reach if self.graph[name].op in COSTLY],
        )
        steps = self._steps(keep)
        parameters = self._parameters(steps)
        for index, environment in enumerate(self.kept):
            found = self._compute(environment, steps, parameters, keep)
            self.kept[index] = {name: value.cpu() for name, value in found.items()}
        self.boundary = boundary

    def _nbytes(self, name: str) -> int:
        kind = self.graph[name].type
        return max(1, kind.elements(self.sizes) * BYTES[kind.dtype])

    def _parameters(self, steps: list[str]) -> Parameters:
        """What the steps read, as it stands now: decoded once for all batches."""
        return {
            name: {p.role: self.weights(name, p.role) for p in self.graph[name].parameters}
            for name in steps
        }

    def _steps(self, wanted: Collection[str]) -> list[str]:
        """Nodes to execute, in order, to get the wanted values from the kept ones."""
        held, needed = self.kept[0], set[str]()
        pending = [name for name in wanted if name not in held]
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                pending.extend(p for p in self.edges.predecessors(name) if p not in held)
        return sorted(needed, key=self.place.__getitem__)

    @torch.no_grad()
    def _compute(
        self,
        kept: Mapping[str, Tensor],
        steps: list[str],
        parameters: Parameters,
        wanted: Collection[str],
    ) -> Environment:
        """Execute the steps on one batch, dropping each value after its last reader."""
        last = {read: step for step in steps for read in self.edges.predecessors(step)}
        environment = {name: value.to(self.device) for name, value in kept.items()}
        for step in steps:
            environment[step] = self._execute(step, environment, parameters[step])
            for read in self.edges.predecessors(step):
                if last[read] == step and read not in wanted:
                    environment.pop(read, None)
        return {name: environment[name] for name in wanted}

    def _execute(
        self, name: str, environment: Environment, parameters: dict[str, Tensor]
    ) -> Tensor:
        node = self.program.nodes[name]
        arguments: Any
        keywords: Any
        arguments, keywords = fx.map_arg(
            (node.args, node.kwargs), lambda read: environment.get(self.names[read])
        )
        result: Tensor
        if node.op == "call_module":
            if self.graph[name].op == LINEAR:
                self.linear_calls += len(arguments[0])
            leaf = self.program.module.get_submodule(str(node.target))
            result = functional_call(leaf, parameters, arguments, keywords)
        elif node.op == "call_method":
            result = getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
        else:
            result = node.target(*arguments, **keywords)  # type: ignore[operator]
        return result
