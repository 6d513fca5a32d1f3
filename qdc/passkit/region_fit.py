"""One region as a function of trainable tensors, fitted to the output of the original region."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qdc.format.codec import Codec, Lowered
from qdc.format.relaxation import Relaxation, TrainableKind
from qdc.ir.graph import Node
from qdc.ir.keys import table_key
from qdc.ir.routing import ROUTER
from qdc.numerics.error import block_errors
from qdc.numerics.moment import MomentAccumulator
from qdc.streaming.execute import Environment
from qdc.streaming.parameters import Parameters
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit

State = list[Tensor]


class RegionFit:
    """The layers of a region in relaxed form, its inputs, and what its outputs should be."""

    def __init__(
        self, unit: Unit, stream: Stream, reference: Stream, weights: Sequence[Tensor]
    ) -> None:
        """Collect states and targets.

        Args:
            unit: one whole region.
            stream: at the region's start; its weights are the quantized ones.
            reference: the same samples at the same place of the original model.
            weights: for each batch ``f32[b, length]``, what a position counts in the loss; padding
                counts nothing.
        """
        assert unit.region is not None
        self.stream, self.executor = stream, stream.executor
        self.outputs = stream.results(unit.region)
        self.states = stream.kept
        data = stream.rows(stream.data)
        self.weights = [part * real for part, real in zip(weights, data, strict=True)]
        self.targets = [stream.states.hold(found) for found in reference.compute(self.outputs)]
        self.steps = self.executor.order.steps(self.outputs, self.states[0])
        self.fixed = {name: stream.weights(name) for name in self.steps}
        self.layers: dict[str, Relaxation] = {}
        self.codecs: dict[str, Codec] = {}
        for node in unit.layers():
            lowered = unit.graph.require(node.name, Lowered)
            working = {s: t.to(unit.device) for s, t in lowered.working(unit.tensors).items()}
            self.layers[node.name] = lowered.codec.relax(working, unit.weight(node))
            self.codecs[node.name] = lowered.codec
        self.vectors = {
            (name, role): nn.Parameter(tensor.clone())
            for name, tensors in self.fixed.items()
            for role, tensor in tensors.items()
            # A bias of a router chooses experts and no more, which has no derivative.
            if tensor.ndim == 1 and unit.graph[name].op != ROUTER
        }
        self.dtypes = {
            (name, role): unit.stored_dtype(unit.graph[name], role) for name, role in self.vectors
        }

    def moving(self, code: float, scale: float, vector: float) -> list[tuple[Tensor, float]]:
        """What moves, each with its first step; rates are shares of each tensor's size."""
        rates = {TrainableKind.CODE: code, TrainableKind.SCALE: scale}
        found: list[tuple[Tensor, float]] = [
            (tensor, rates[kind] * size)
            for layer in self.layers.values()
            for kind, tensor, size in layer.trainable()
        ]
        found += [(tensor, vector) for tensor in self.vectors.values()]
        return found

    def batch_loss(self, batch: int, parameters: Parameters | None = None) -> Tensor:
        """Mean squared error of the outputs of one batch, weighted by position.

        Without parameters it is that of the trainable tensors, with gradients.
        """
        if parameters is None:
            parameters = self._parameters()
        found = self._run(batch, self.steps, parameters, self.outputs)
        weights = self.weights[batch].to(self.executor.device)
        total = torch.zeros((), device=self.executor.device)
        for name, value in found.items():
            error = (value - self.targets[batch][name].to(value.device)).square()
            total = total + (error.flatten(2).mean(2) * weights).sum() / weights.sum()
        return total

    def start_loss(self, batches: Sequence[int]) -> float:
        """Mean loss of some batches with the region as it came."""
        return self._mean_loss(batches, self.fixed)

    @torch.no_grad()
    def loss(self, batches: Sequence[int]) -> float:
        """Mean loss of some batches, everything rounded to what would be stored now.

        Infinite where a scale does not fit its stored dtype.
        """
        try:
            parameters = self._rounded()
        except OverflowError:
            return math.inf
        return self._mean_loss(batches, parameters)

    def snapshot(self) -> State:
        """Copies of all trainable tensors."""
        return [tensor.detach().clone() for tensor in self._trainable()]

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        for tensor, kept in zip(self._trainable(), state, strict=True):
            tensor.copy_(kept)

    def write(self, unit: Unit, held: Sequence[int], before: float, best: float) -> None:
        """Round everything to what is stored, and annotate it, if that is better than the start."""
        improved = best < before
        if improved:
            for (name, role), tensor in self.vectors.items():
                unit.tune(unit.graph[name], role, tensor.detach())
        for node in unit.layers():
            if improved:
                self._write_layer(unit, node)
            kind = "passed" if improved else "missed"
            unit.remark(kind, node, region_loss_before=before, region_loss=best)
        if improved:
            self._note_errors(unit, held)

    def _write_layer(self, unit: Unit, node: Node) -> None:
        lowered = unit.graph.require(node.name, Lowered)
        working = self.layers[node.name].working()
        refs = tuple(unit.put(table_key(node.name, s), t.cpu()) for s, t in working.items())
        kept = {"tensors": refs, "suffixes": tuple(working), "error": None, "block_errors": ()}
        unit.annotate(node, lowered.model_copy(update=kept))

    @torch.no_grad()
    def _note_errors(self, unit: Unit, held: Sequence[int]) -> None:
        """Relative output error of each layer on the held-out states, as stored."""
        stages = {stage.value: stage for stage, _ in unit.layers_by_stage()}
        values = tuple(stages)
        steps = self.executor.order.steps(values, self.states[0])
        parameters = {name: self.stream.weights(name) for name in steps}
        moments = {
            stage.value: MomentAccumulator(nodes[0].columns, unit.device)
            for stage, nodes in unit.layers_by_stage()
        }
        places = self.stream.places()
        for batch in held:
            found = self._run(batch, steps, parameters, values)
            for name, value in found.items():
                read = self.stream.reading(stages[name], value, batch)
                moments[name].add(self.stream.at(name, read, places[batch]))
        for stage, nodes in unit.layers_by_stage():
            if not moments[stage.value].tokens:
                continue  # an expert that none of the held-out tokens is routed to
            for node in nodes:
                lowered = unit.graph.require(node.name, Lowered)
                dense = lowered.codec.dense(lowered.working(unit.tensors)).to(unit.device)
                error = block_errors(
                    unit.weight(node),
                    dense,
                    moments[stage.value].value(),
                    lowered.codec.column_blocks,
                )
                if not math.isfinite(error.total):
                    continue  # a layer without output: the share is undefined
                noted = {"error": error.total, "block_errors": error.blocks}
                unit.annotate(node, lowered.model_copy(update=noted))

    def _run(
        self, batch: int, steps: list[str], parameters: Parameters, wanted: tuple[str, ...]
    ) -> Environment:
        segments, masked = self.stream.segments_of(batch), self.stream.masked_of(batch)
        return self.executor.run(self.states[batch], steps, parameters, wanted, segments, masked)

    @torch.no_grad()
    def _mean_loss(self, batches: Sequence[int], parameters: Parameters) -> float:
        return sum(float(self.batch_loss(batch, parameters)) for batch in batches) / len(batches)

    def _rounded(self) -> dict[str, dict[str, Tensor]]:
        found = {name: dict(tensors) for name, tensors in self.fixed.items()}
        for (name, role), tensor in self.vectors.items():
            found[name][role] = tensor.to(self.dtypes[name, role]).to(torch.float32)
        for name, layer in self.layers.items():
            found[name]["weight"] = self.codecs[name].dense(layer.working())
        return found

    def _parameters(self) -> dict[str, dict[str, Tensor]]:
        found = {name: dict(tensors) for name, tensors in self.fixed.items()}
        for (name, role), tensor in self.vectors.items():
            found[name][role] = tensor
        for name, layer in self.layers.items():
            found[name]["weight"] = layer.dense()
        return found

    def _trainable(self) -> list[Tensor]:
        tensors: list[Tensor] = [t for layer in self.layers.values() for t in layer.parameters()]
        return tensors + list(self.vectors.values())
