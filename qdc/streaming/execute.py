"""Execute part of a traced model, node by node, from values that are at hand."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.func import functional_call

from qdc.errors import QdcError
from qdc.frontend.calls import NodeCalls, Sizes
from qdc.frontend.tracer import Program
from qdc.ir.annotation import Annotation
from qdc.ir.graph import LINEAR
from qdc.ir.routing import ROUTED, ROWS
from qdc.models.layers import Attention
from qdc.numerics.products import wide_products
from qdc.streaming.batches import Sight
from qdc.streaming.inputs import LayerInputs
from qdc.streaming.order import ExecutionOrder
from qdc.streaming.parameters import Parameters

Environment = dict[str, Tensor]
Shrunk = Callable[[str, int], None]


class Read(NamedTuple):
    """What a linear has made of a value."""

    value: Tensor
    version: int
    """How often the value had been changed in place."""
    notes: tuple[Annotation | None, ...]
    read: Tensor

    def holds(self, value: Tensor, notes: tuple[Annotation | None, ...]) -> bool:
        """Whether a linear with these annotations makes the same of a value."""
        return value is self.value and value._version == self.version and notes == self.notes


class Executor:
    """Runs nodes of a program. Gradients flow unless the caller switches them off."""

    def __init__(
        self, program: Program, device: torch.device, inputs: LayerInputs | None = None
    ) -> None:
        """Index the nodes.

        Args:
            program: the traced model.
            device: where it is computed.
            inputs: what linears make of the values that they read; nothing if not given.
        """
        self.program, self.device, self.inputs = program, device, inputs
        self.graph = program.graph
        self.order = ExecutionOrder(program.graph)
        """What is executed when."""
        self._names = {
            node: name for name, node in program.nodes.items() if isinstance(node, fx.Node)
        }
        self.most: float = math.inf
        """Samples of the largest batch that the device may be able to hold."""
        self.shrunk: Shrunk = lambda name, samples: None
        """Called when a batch did not fit: with the last node to compute, and the new size."""
        self.linear_calls = 0
        """Linears executed, counted once for each sample; without those of experts."""
        self.routed_rows = 0
        """Linears of experts executed, counted once for each token."""
        self._last_read: Read | None = None

    def run(
        self,
        held: Mapping[str, Tensor],
        steps: list[str],
        parameters: Parameters,
        wanted: Collection[str],
        segments: Tensor | None = None,
        masked: Tensor | None = None,
    ) -> Environment:
        """Execute the steps on one batch; halves of it where the device's memory is too small.

        A batch size that did not fit is not tried again.

        Args:
            held: values at hand, on any device and in any floating dtype; computed with in fp32.
            steps: as ``order.steps(wanted, held)`` gives them.
            parameters: of every step.
            wanted: the values to return.
            segments: ``i64[b, length]``, see ``batches``; None if all positions see each other.
            masked: ``bool[b, length]``, which tokens are masked; None where nothing asks for it.

        Returns:
            The wanted values, on the device, padding included; experts get none of it.

        Raises:
            QdcError: the memory does not hold one sample.
        """
        rows = self._rows(held)
        if rows > self.most:
            return self._run_halves(held, steps, parameters, wanted, rows, segments, masked)
        calls, routed = self.linear_calls, self.routed_rows
        try:
            with wide_products(self.device):
                return self._run(held, steps, parameters, wanted, segments, masked)
        except torch.OutOfMemoryError as error:
            if rows < 2:
                raise QdcError(
                    f"the memory of {self.device} does not hold one sample",
                    where=[f"%{name}" for name in wanted],
                    help="lower --length, or use --device cpu",
                ) from error
            if any(self._routed(name) for name in (*held, *wanted)):
                raise QdcError(
                    f"the memory of {self.device} does not hold a batch of {rows} samples, and "
                    "what experts read cannot be split by samples",
                    where=[f"%{name}" for name in wanted if self._routed(name)],
                    help="lower the batch: 'calibrate-cross{batch=1}'",
                ) from error
        finally:
            self._last_read = None
        # Here the error is gone, and with it what its traceback kept in memory.
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.linear_calls, self.routed_rows, self.most = calls, routed, rows // 2
        self.shrunk(steps[-1], self.most)
        return self._run_halves(held, steps, parameters, wanted, rows, segments, masked)

    def _run_halves(
        self,
        held: Mapping[str, Tensor],
        steps: list[str],
        parameters: Parameters,
        wanted: Collection[str],
        rows: int,
        segments: Tensor | None,
        masked: Tensor | None,
    ) -> Environment:
        """Run both halves of a batch of so many samples, one after the other."""
        half = rows // 2
        parts = [
            self.run(
                {name: self._samples(name, value, rows, some) for name, value in held.items()},
                steps,
                parameters,
                wanted,
                None if segments is None else segments[some],
                None if masked is None else masked[some],
            )
            for some in (slice(0, half), slice(half, rows))
        ]
        return {
            name: torch.cat([part[name] for part in parts])
            if self._batched(name)
            else parts[0][name]
            for name in wanted
        }

    def _samples(self, name: str, value: Tensor, rows: int, some: slice) -> Tensor:
        """The part of a value that belongs to these samples of a batch."""
        if not self._batched(name):
            return value
        each = len(value) // rows
        return value[some.start * each : some.stop * each]

    def _batched(self, name: str) -> bool:
        """Whether the first dimension of a value counts samples, or their tokens."""
        shape = self.graph[name].type.shape
        return bool(shape) and str(shape[0]).split("*")[0] == "B"

    def _routed(self, name: str) -> bool:
        """Whether a value holds the tokens of one expert, which belong to any samples."""
        return self.graph[name].type.shape[:1] == (ROUTED,)

    def _rows(self, held: Mapping[str, Tensor]) -> int:
        """Samples of a batch; 1 where no value says."""
        found = (len(v) for n, v in held.items() if self.graph[n].type.shape[:1] == ("B",))
        return next(found, 1)

    def _run(
        self,
        held: Mapping[str, Tensor],
        steps: list[str],
        parameters: Parameters,
        wanted: Collection[str],
        segments: Tensor | None,
        masked: Tensor | None,
    ) -> Environment:
        """Execute the steps, dropping each value after its last reader."""
        last = {read: step for step in steps for read in self.order.edges.predecessors(step)}
        environment = {name: self._widen(held[name]) for name in {*last, *wanted} & set(held)}
        sizes = self._sizes(held)
        sight = None if segments is None else Sight(segments.to(self.device))
        for step in steps:
            environment[step] = self.execute(
                step, environment, parameters[step], sizes, sight, masked
            )
            for read in self.order.edges.predecessors(step):
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

    def execute(
        self,
        name: str,
        environment: Environment,
        parameters: Mapping[str, Tensor],
        sizes: Sizes,
        sight: Sight | None = None,
        masked: Tensor | None = None,
    ) -> Tensor:
        """Execute one node.

        Args:
            name: of the node.
            environment: what it reads, in the compute dtype, on the device.
            parameters: of the node, by role.
            sizes: batch and length.
            sight: which positions see each other; all if not given.
            masked: ``bool[b, length]``, which tokens are masked, for linears that ask.
        """
        result: Tensor
        node = self.program.nodes[name]
        if isinstance(node, NodeCalls):
            if self.graph[name].op == LINEAR:
                (read,) = self.graph[name].inputs
                self._count(name, environment[read])
                environment = {read: self._read(name, environment[read], masked)}
            same = sight.same if sight is not None and node.attends else None
            result = node.run(environment, parameters, sizes, self.device, same)
            return self._without_padding(name, self._give(name, result, masked), sight)
        arguments: Any
        keywords: Any
        arguments, keywords = fx.map_arg(
            (node.args, node.kwargs), lambda read: environment.get(self._names[read])
        )
        if node.op == "call_module":
            if self.graph[name].op == LINEAR:
                self._count(name, arguments[0])
                arguments = (self._read(name, arguments[0], masked), *arguments[1:])
            leaf = self.program.module.get_submodule(str(node.target))
            if sight is not None and isinstance(leaf, Attention):
                arguments, keywords = _narrowed(leaf, arguments, sight), {}
            result = functional_call(leaf, dict(parameters), arguments, keywords)
            result = self._give(name, result, masked)
        elif node.op == "call_method":
            result = getattr(arguments[0], str(node.target))(*arguments[1:], **keywords)
        else:
            result = node.target(*arguments, **keywords)  # type: ignore[operator]
        return self._without_padding(name, result, sight)

    def _read(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor:
        """What a linear multiplies in the place of the value that it reads."""
        if self.inputs is None:
            return value
        # Layers of a stage read the same value one after the other: it is turned once.
        notes, last = self.inputs.notes(name), self._last_read
        if last is None or not last.holds(value, notes):
            read = self.inputs.read(name, value, masked)
            last = self._last_read = Read(value, value._version, notes, read)
        return last.read

    def _give(self, name: str, value: Tensor, masked: Tensor | None) -> Tensor:
        """What is read in the place of the value that a linear gives."""
        asked = self.inputs is not None and self.graph[name].op == LINEAR
        return self.inputs.give(name, value, masked) if asked and self.inputs else value

    def _without_padding(self, name: str, result: Tensor, sight: Sight | None) -> Tensor:
        """Send padding to no expert: then all that hangs on the routing leaves it out."""
        if sight is None or self.graph[name].op != ROWS:
            return result
        return sight.data(result)

    def _count(self, name: str, read: Tensor) -> None:
        """Count one execution of a linear."""
        if self.graph[name].type.shape[:1] == (ROUTED,):
            self.routed_rows += len(read)
        else:
            self.linear_calls += len(read)


def _narrowed(leaf: Attention, arguments: tuple[Any, ...], sight: Sight) -> tuple[Any, ...]:
    """The arguments of an attention, with a mask of those that it may see of one segment."""
    query, key, value, *_ = arguments
    visible = leaf.visible(query, None)
    return query, key, value, sight.same if visible is None else visible & sight.same
