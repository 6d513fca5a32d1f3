"""The continuous numbers of a quantized model as something that gradients move, codes fixed.

Scales of lowered layers, norm gains and biases are leaves of fp32; what a layer is made of beside
them waits with the calibration states and is read for one region at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qdc.format.codec import Codec, Lowered
from qdc.format.rescaling import Rescaling
from qdc.ir.graph import Node
from qdc.ir.keys import table_key
from qdc.ir.routing import ROUTER
from qdc.ir.tuned import Tuned
from qdc.passkit.course import Piece, push_back
from qdc.streaming.parameters import Parameters
from qdc.streaming.states import Held, StateStore
from qdc.streaming.unit import Unit

State = list[Tensor]


class Rates(NamedTuple):
    """First steps, as a share of the size of what moves; what has a step of 0 is not moved.

    Attributes:
        scale: of scales.
        vector: of norm gains and biases.
    """

    scale: float
    vector: float


class Layer(NamedTuple):
    """One lowered layer.

    Attributes:
        rescaling: how its weight hangs on its scales.
        fixed: what it is made of beside them.
    """

    rescaling: Rescaling
    fixed: Held


@dataclass
class Moved:
    """The weight of a layer in one region's turn.

    Attributes:
        made: from scales, with gradients.
        leaf: its copy, which the region is computed with and whose gradient adds up.
    """

    made: Tensor
    leaf: Tensor


class Tuning:
    """All numbers of some pieces that move, and those pieces' parameters as they stand."""

    def __init__(
        self, unit: Unit, found: Sequence[Piece], states: StateStore, rates: Rates
    ) -> None:
        """Collect them, one layer at a time.

        Args:
            unit: the model.
            found: its pieces.
            states: where that of the layers waits that does not move.
            rates: first steps.

        Raises:
            InvalidPipeline: a codec has no such form.
        """
        self.unit, self.rates = unit, rates
        self._original = unit.original_weights()
        self.layers: dict[str, Layer] = {}
        self.scales: dict[str, dict[str, nn.Parameter]] = {}
        self.vectors: dict[str, dict[str, nn.Parameter]] = {}
        for node in unit.layers():
            rescaling, working = self._codec(node.name).rescaling(), self._working(node.name)
            scales = rescaling.scales(working)
            self.scales[node.name] = {s: self._leaf(t, rates.scale) for s, t in scales.items()}
            self.layers[node.name] = Layer(rescaling, states.hold(rescaling.fixed(working)))
        for name in (name for piece in found for name in piece.steps):
            node = unit.graph[name]
            # What chooses experts has no derivative, so a bias that only chooses cannot move.
            rate = 0.0 if node.op == ROUTER else rates.vector
            vectors = self._plain(node, matrices=False)
            self.vectors[name] = {r: self._leaf(t, rate) for r, t in vectors.items()}

    def numbers(self) -> list[tuple[Tensor, float]]:
        """What moves, each with its first step."""
        kinds = ((self.scales, self.rates.scale), (self.vectors, self.rates.vector))
        return [
            (tensor, rate * size_of(tensor))
            for numbers, rate in kinds
            for tensor in self._every(numbers)
            if tensor.requires_grad
        ]

    @property
    def count(self) -> int:
        """How many numbers move."""
        return sum(tensor.numel() for tensor in self._all() if tensor.requires_grad)

    @torch.no_grad()
    def now(self, piece: Piece) -> Parameters:
        """Parameters of a piece as they would be stored, but that scales are not rounded."""
        return self._parameters(piece, {name: self._dense(name) for name in self._lowered(piece)})

    @torch.no_grad()
    def stored(self, piece: Piece) -> Parameters:
        """Parameters of a piece, bit for bit what would be stored now. Raises ``OverflowError``."""
        return self._parameters(piece, {name: self._exact(name) for name in self._lowered(piece)})

    def moving(self, piece: Piece) -> tuple[Parameters, list[Moved]]:
        """Parameters of a piece with gradients; ``collect`` takes those of its layers back."""
        moved = {}
        for name in self._lowered(piece):
            made = self._dense(name)
            moved[name] = Moved(made, made.detach().requires_grad_(made.requires_grad))
        weights = {name: each.leaf for name, each in moved.items()}
        return self._parameters(piece, weights, rounded=False), list(moved.values())

    @staticmethod
    def collect(moved: Sequence[Moved]) -> None:
        """Add the gradients of weights to those of the scales that they are made of."""
        for each in moved:
            if each.leaf.grad is not None:
                push_back([(each.made, each.leaf.grad)])

    def snapshot(self) -> State:
        """Copies of all numbers."""
        return [tensor.detach().clone() for tensor in self._all()]

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back to a snapshot."""
        for tensor, kept in zip(self._all(), state, strict=True):
            tensor.copy_(kept)

    @torch.no_grad()
    def write(self) -> None:
        """Round everything to what is stored, and annotate it. Raises ``OverflowError``."""
        unit = self.unit
        for name, vectors in self.vectors.items():
            for role, tensor in vectors.items():
                if tensor.requires_grad:
                    unit.tune(unit.graph[name], role, tensor)
        for node in unit.layers() if self.rates.scale else ():
            lowered = unit.graph.require(node.name, Lowered)
            working = self._rescaled(node.name)
            refs = tuple(unit.put(table_key(node.name, s), t) for s, t in working.items())
            # The error of its own outputs says little of a layer that was moved with all others.
            kept = {"tensors": refs, "suffixes": tuple(working), "error": None, "block_errors": ()}
            unit.annotate(node, lowered.model_copy(update=kept))

    @staticmethod
    def _every(numbers: Mapping[str, Mapping[str, nn.Parameter]]) -> Iterator[nn.Parameter]:
        return (tensor for tensors in numbers.values() for tensor in tensors.values())

    def _all(self) -> list[nn.Parameter]:
        return [*self._every(self.scales), *self._every(self.vectors)]

    def _leaf(self, tensor: Tensor, rate: float) -> nn.Parameter:
        return nn.Parameter(tensor.to(self.unit.device, copy=True), requires_grad=rate > 0)

    def _lowered(self, piece: Piece) -> Iterator[str]:
        return (name for name in piece.steps if name in self.layers)

    def _codec(self, name: str) -> Codec:
        codec: Codec = self.unit.graph.require(name, Lowered).codec
        return codec

    def _working(self, name: str) -> dict[str, Tensor]:
        lowered = self.unit.graph.require(name, Lowered)
        return {s: t.cpu() for s, t in lowered.working(self.unit.tensors).items()}

    def _rescaled(self, name: str) -> dict[str, Tensor]:
        scales = {suffix: t.detach().cpu() for suffix, t in self.scales[name].items()}
        return self.layers[name].rescaling.working(self._working(name), scales)

    def _exact(self, name: str) -> Tensor:
        return self._codec(name).dense(self._rescaled(name)).to(self.unit.device)

    def _dense(self, name: str) -> Tensor:
        rescaling, held = self.layers[name]
        fixed = {suffix: self._widened(tensor) for suffix, tensor in held.items()}
        return rescaling.dense(fixed, self.scales[name])

    def _widened(self, tensor: Tensor) -> Tensor:
        wide = torch.float32 if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self.unit.device, wide)

    def _parameters(
        self, piece: Piece, weights: Mapping[str, Tensor], *, rounded: bool = True
    ) -> dict[str, dict[str, Tensor]]:
        found: dict[str, dict[str, Tensor]] = {}
        for name in piece.steps:
            node, lowered = self.unit.graph[name], name in weights
            own = {"weight": weights[name]} if lowered else self._plain(node, matrices=True)
            for role, tensor in self.vectors[name].items():
                own[role] = self._rounded(node, role, tensor) if rounded else tensor
            found[name] = own
        return found

    def _rounded(self, node: Node, role: str, tensor: Tensor) -> Tensor:
        return tensor.to(self.unit.stored_dtype(node, role)).to(torch.float32)

    def _plain(self, node: Node, *, matrices: bool) -> dict[str, Tensor]:
        """Vectors of a node, or its other parameters: f32 on the device, none of them held."""
        unit = self.unit
        roles = [p.role for p in node.parameters if (len(p.shape) > 1) == matrices]
        if matrices:
            return {
                role: self._matrix(node, role) for role in roles if node.name not in self.layers
            }
        tuned = unit.graph.get(node.name, Tuned)
        roles += () if tuned is None else tuned.added(node)
        return {role: unit.current(node, role) for role in roles}

    def _matrix(self, node: Node, role: str) -> Tensor:
        """One that a codec makes, or the checkpoint's, which is read anew."""
        owner = self.unit.graph.owner(node.name, role)
        if self.unit.graph.get(owner, Lowered) is not None:
            return self.unit.current(node, role)
        return self._original(node.name)[role]


def size_of(tensor: Tensor) -> float:
    """The mean absolute value; 1 where all numbers are 0, as of biases that were never trained.

    A gain of a norm and the weights behind it share a scale, which says nothing of the model: steps
    of one size for all gains would be a tenth of those of one layer and nothing to another's.
    """
    return float(tensor.detach().abs().mean()) or 1.0
