"""The calibration stream: samples on their way through the model, stage by stage.

Between two stages only the frontier of live values is held (``frontier``). Values are computed with
the weights as they are at that moment, so inside ``stages(...)`` each stage sees the quantization
of the stages before it. Every linear is executed once for each sample, unless a later pass rewrites
what the stream has gone past: then it goes back to where it entered the region.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from qdc.frontend.tracer import Program
from qdc.ir.graph import Region, Stage
from qdc.ir.types import BYTES
from qdc.pipeline.execute import Environment, Executor
from qdc.pipeline.frontier import values_to_keep

Weights = Callable[[str], Mapping[str, Tensor]]
"""``node name -> tensors by role``, in the compute dtype, as they stand now."""
Place = tuple[int, tuple[str, ...], list[Environment]]
"""Boundary, names of the values kept there, the values."""
COSTLY = frozenset({"linear", "attention", "input", "embedding"})


class Stream:
    """Batches of samples at one place of the model."""

    def __init__(
        self,
        program: Program,
        batches: list[Tensor],
        weights: Weights,
        device: torch.device,
        *,
        returns: bool = False,
        held: torch.dtype = torch.float32,
        part: slice = slice(None),
    ) -> None:
        """Start before the first region.

        Args:
            program: the traced model; its first input takes the token ids, the others are absent.
            batches: ``i64[b, length]`` token ids, no padding.
            weights: gives each node's parameters as they stand at the time of the call.
            device: where values are computed; they are held on the CPU between stages.
            returns: whether to hold the values with which a region was entered until it is left,
                so that the stream can go back there.
            held: floating dtype of the values between stages; they are computed in fp32.
            part: the batches that this process moves; others move the rest.
        """
        self.executor = Executor(program, device)
        self.graph, self.weights, self.returns = program.graph, weights, returns
        self.held = held
        self.boundary = 0
        """Nodes before this place have been computed."""
        self.tokens = torch.cat(batches)
        """``i64[samples, length]``: what was put in, in all processes together."""
        self.sizes = dict(zip("BL", batches[0].shape, strict=True))
        self.kept: list[Environment] = [{self.executor.tokens: batch} for batch in batches[part]]
        self._counts, self._part = [len(batch) for batch in batches], part
        self.names: tuple[str, ...] = (self.executor.tokens,)
        """Of the values in ``kept``, also where it has no batch."""
        self._entrance: Place = (self.boundary, self.names, list(self.kept))
        self._left = 0

    @property
    def split(self) -> bool:
        """Whether other processes move some of the batches."""
        return self._part != slice(None)

    @property
    def linear_calls(self) -> int:
        """Linears executed, counted once for each sample."""
        return self.executor.linear_calls

    def start(self, region: Region) -> None:
        """Advance to the first node of a region, or go back there."""
        place = self.executor.place[region.nodes[0]]
        if place < self.boundary:
            self.rewind()
        self._advance(place)
        self._mark()

    def enter(self, stage: Stage) -> None:
        """Advance to just before the stage's first linear, or go back there."""
        place = min(self.executor.place[layer] for layer in stage.layers)
        if place < self.boundary:
            self.rewind()
        self._advance(place)

    def leave(self, region: Region) -> None:
        """Advance past a region; does nothing if the stream is past it, or if none follows."""
        self._left = self.executor.place[region.nodes[-1]] + 1
        if region is not self.graph.regions[-1]:
            self._advance(self._left)
        self._mark()

    def passed(self, name: str) -> bool:
        """Whether values that hang on this node were computed, in a region not yet left."""
        return self._left <= self.executor.place[name] < self.boundary

    def rewind(self) -> None:
        """Go back to where the region was entered. Raises ``RuntimeError`` if not held."""
        if not self.returns:
            raise RuntimeError("the stream does not hold what it would go back to")
        self.boundary, self.names, kept = self._entrance
        self.kept = list(kept)

    def rows(self, values: Tensor) -> list[Tensor]:
        """Of something with a row for each sample, the rows of each batch that is moved here."""
        return list(torch.split(values, self._counts))[self._part]

    def values(self, stage: Stage) -> Iterator[Tensor]:
        """Yield the value that the stage reads, batch by batch: ``[b, length, columns]``."""
        for found in self.compute((stage.value,)):
            yield found[stage.value]

    def compute(self, wanted: tuple[str, ...]) -> Iterator[Environment]:
        """Yield values ahead of the boundary, batch by batch, on the device; nothing moves."""
        steps = self.executor.steps(wanted, self.names)
        parameters = self._parameters(steps) if self.kept else {}
        for environment in self.kept:
            with torch.no_grad():
                found = self.executor.run(environment, steps, parameters, wanted)
            yield found

    def results(self, region: Region) -> tuple[str, ...]:
        """Names of the values that a region hands on: those that nodes after it read."""
        end = self.executor.place[region.nodes[-1]] + 1
        read = self.executor.read_after(end)
        return tuple(name for name in region.nodes if name in read)

    def kept_bytes(self) -> int:
        """Bytes that are held between two stages."""
        return sum(value.nbytes for environment in self.kept for value in environment.values())

    def _mark(self) -> None:
        if self.returns:
            self._entrance = (self.boundary, self.names, list(self.kept))

    @torch.no_grad()
    def _advance(self, boundary: int) -> None:
        """Compute what the nodes from ``boundary`` on need, and keep the cheapest part of it."""
        if boundary <= self.boundary:
            return
        executor = self.executor
        needed = executor.read_after(boundary)
        reach = [*self.names, *executor.steps(needed, self.names)]
        keep = values_to_keep(
            executor.edges,
            reach,
            needed,
            {name: self._nbytes(name) for name in reach},
            [name for name in reach if self.graph[name].op in COSTLY],
        )
        steps = executor.steps(keep, self.names)
        parameters = self._parameters(steps) if self.kept else {}
        for index, environment in enumerate(self.kept):
            found = executor.run(environment, steps, parameters, keep)
            self.kept[index] = {name: hold(value, self.held) for name, value in found.items()}
        self.boundary, self.names = boundary, tuple(keep)

    def _nbytes(self, name: str) -> int:
        kind = self.graph[name].type
        return max(1, kind.elements(self.sizes) * BYTES[kind.dtype])

    def _parameters(self, steps: list[str]) -> dict[str, Mapping[str, Tensor]]:
        """What the steps read, as it stands now: decoded once for all batches."""
        return {name: self.weights(name) for name in steps}


def hold(value: Tensor, dtype: torch.dtype) -> Tensor:
    """A value as it waits on the CPU: floats in ``dtype``, token ids as they are."""
    return value.to("cpu", dtype if value.is_floating_point() else value.dtype)
