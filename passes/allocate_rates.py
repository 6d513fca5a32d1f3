"""Give each layer its rate, in eighths of a bit: most where the predictions need it most.

Source: rate-distortion theory. With codes that come in small steps, an error falls by the same
factor for each bit, whatever layer it is spent on (trellis codes: 0.27, docs/quantizers/qtip.md),
so that what predict-error noted says what every rate costs. ``weights=loss`` counts a layer's
error by what probe-loss measured; ``energy`` as a share of the layer's output, and needs no probes;
``guided`` takes the nats that ``predict-error{outputs=guided}`` noted, and needs none either.
Steps of an eighth go where they save most for their bytes, and never take more than the budget.

    before   %h0.q = linear %x   w f16[64,512]
                 @predicted  an error of 0.13 of the output at a distortion of 1
                 @loss      0.0013 nats at 1,631 positions   0.021 for a unit of output error
    after        @rate      2.25 bits

``count=codes`` keeps the mean of the rates over the weights at or below the budget; ``layers`` all
that is stored of these layers: codes, scales, seeds, padding; ``effective`` all that is stored of
them, and of embedding and head where a pass before this one has quantized them. Where bytes count,
those of every layer are checked against what was counted on.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import ClassVar, Final, Literal, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from qdc.format.trelliscode import TrellisCode
from qdc.numerics.tiling import LONGEST, usual_height
from qdc.numerics.trellis import EIGHTHS, FALL
from qdc.numerics.unseen import unseen_as_usual
from qdc.passkit import (
    Annotation,
    Field,
    Forecast,
    InvalidPipeline,
    Kinds,
    LayerGraph,
    LossSensitivity,
    Lowered,
    Node,
    OrderOutOfRange,
    Packed,
    Pass,
    Unit,
    model_validator,
)

from .predict_error import PredictedError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
LOWEST, HIGHEST = EIGHTHS, 4 * EIGHTHS
"""Eighths of a bit that a weight may have."""
TILE: Final = ("height", "width")
"""Options that bytes depend on, which are those of the lowering."""
DEAR = 5
"""Bits a weight of a vocabulary that could have 4."""


class Rate(Annotation):
    """How many bits a weight of this layer gets."""

    tag: ClassVar[str] = "rate"
    eighths: int = Field(ge=LOWEST, le=HIGHEST)
    stored_bytes: int | None = Field(default=None, ge=0)
    """Most bytes that the packed layer may take; None allows any number."""

    @property
    def bits(self) -> float:
        """Bits a weight."""
        return self.eighths / EIGHTHS

    def text(self) -> str:
        """``2.25 bits``."""
        return f"{self.bits:g} bits"


class Room(NamedTuple):
    """What layers may take together.

    Attributes:
        units: in the unit of ``AllocateRates.sizes``.
        weights: over which the budget is the mean.
        vocabulary: bits a weight that embedding and head take of it; 0 if they are not counted.
    """

    units: int
    weights: int
    vocabulary: float = 0.0


class AllocateRates(Pass):
    """Give each layer its rate, in eighths of a bit: most where the predictions need it most."""

    name: ClassVar[str] = "allocate-rates"
    requires: ClassVar[Kinds] = (PredictedError,)
    provides: ClassVar[Kinds] = (Rate,)
    reads_all: ClassVar[bool] = False

    budget: float = Field(default=2, gt=0, le=8, description="most mean bits a weight")
    count: Literal["codes", "layers", "effective"] = Field(
        default="codes",
        description="bits that count: codes, all that is stored of the layers, or the vocabulary's "
        "too",
    )
    weights: Literal["loss", "energy", "guided"] = Field(
        default="loss", description="how the errors of different layers compare"
    )
    lowest: float = Field(default=1, ge=1, le=4, description="least bits of a layer, in eighths")
    highest: float = Field(default=4, ge=1, le=4, description="most bits of a layer, in eighths")
    height: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST,
        description="the lowering's, where bytes count; as there if not given",
    )
    width: int = Field(default=1, ge=1, le=64, description="the lowering's, where bytes count")

    @model_validator(mode="after")
    def _rates_are_eighths(self) -> "AllocateRates":
        for bits in (self.lowest, self.highest):
            if bits * EIGHTHS != int(bits * EIGHTHS):
                raise ValueError(f"bits are in eighths, as 1.5 or 2.125, not {bits:g}")
        if self.lowest > self.highest:
            raise ValueError(f"lowest {self.lowest:g} is above highest {self.highest:g}")
        for option in TILE if self.count == "codes" else ():
            if getattr(self, option) != type(self).model_fields[option].default:
                raise ValueError(f"count=codes does not read {option}")
        return self

    def needs(self) -> Kinds:
        """What the weights read."""
        return (PredictedError, LossSensitivity) if self.weights == "loss" else (PredictedError,)

    def whole_model(self) -> bool:
        """The budget is one over all layers."""
        return True

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse a lowering that reads no rates, and one whose bytes are not those counted on."""
        lowering = [s for s in later if any(issubclass(kind, Lowered) for kind in s.provides)]
        reading = [step for step in lowering if Rate in step.needs()]
        if lowering and not reading:
            raise InvalidPipeline(
                f"{self.name} is for a lowering that reads its rates, which {lowering[0].name} "
                "does not as it is",
                help="lower with trellis-lower{bits=allocated}",
            )
        for step in reading:
            for option in TILE if self.count != "codes" else ():
                value = getattr(self, option)
                if getattr(step, option, value) != value:
                    size = f"the usual {option}" if value is None else f"{option} {value}"
                    raise InvalidPipeline(
                        f"{self.name}{{count={self.count}}} counts tiles of {size}, and "
                        f"{step.name} stores others",
                        help=f"write the same {option} to both, or choose count=codes",
                    )
            alike = getattr(step, "outputs", "alike") == "alike"
            if self.count != "codes" and not self.height and alike == (self.weights == "guided"):
                raise InvalidPipeline(
                    f"{self.name}{{count={self.count} weights={self.weights}}} counts other tiles "
                    f"than {step.name}{{outputs={'alike' if alike else 'guided'}}} stores",
                    help="write the same height to both, or choose count=codes",
                )

    def check(self, graph: LayerGraph) -> None:
        """Refuse a budget that no rates keep; how a vocabulary is stored is not known yet."""
        nodes = list(graph.layers())
        if nodes and self.count != "effective":
            self.equal(np.stack([self.sizes(n) for n in nodes]), self.room(nodes, []), nodes)

    def run(self, unit: Unit) -> None:
        """Write the rates."""
        nodes = list(unit.layers())
        if not nodes:
            return  # all of them are kept
        costs = np.stack([self.costs(unit, node) for node in nodes])
        if self.weights == "guided":
            costs = unseen_as_usual(costs, np.array([node.rows * node.columns for node in nodes]))
        packed = (unit.graph.get(node.name, Packed) for node in unit.graph.vocabulary())
        room = self.room(nodes, [(note.weights, note.nbytes) for note in packed if note])
        sizes = np.stack([self.sizes(node) for node in nodes])
        usual = self.equal(sizes, room, nodes)
        rates = self.allocate(costs, sizes, room.units)
        for node, eighths, taken in zip(nodes, rates, sizes, strict=True):
            stored = None if self.count == "codes" else int(taken[eighths - self.least])
            unit.annotate(node, Rate(eighths=eighths, stored_bytes=stored))
            if eighths != usual:
                moved = {"from": usual / EIGHTHS, "to": eighths / EIGHTHS}
                unit.remark("passed", node, **moved)

    def forecast(self, unit: Forecast) -> None:
        """Every layer at the highest equal rate, and what others may store beyond it."""
        nodes = list(unit.layers())
        if not nodes:
            return
        known = [(node.rows * node.columns, unit.codec(node)) for node in unit.graph.vocabulary()]
        room = self.room(nodes, [(n, codec.nbytes) for n, codec in known if codec is not None])
        sizes = np.stack([self.sizes(node) for node in nodes])
        usual = self.equal(sizes, room, nodes)
        for node in nodes:
            unit.annotate(node, Rate(eighths=usual))
        # What is left in the end is less than some layer's next step, if any could have one.
        taken, steps = int(sizes[:, usual - self.least].sum()), np.diff(sizes, axis=1)
        most = min(room.units, int(sizes[:, -1].sum()))
        least = min(most, room.units - int(steps.max(initial=0)))
        scale = 8 * EIGHTHS if self.count == "codes" else 1
        unit.orders_vary(max(0, taken - least) // scale, max(0, most - taken) // scale + len(nodes))

    @property
    def least(self) -> int:
        """The lowest rate in eighths."""
        return int(self.lowest * EIGHTHS)

    @property
    def rates(self) -> range:
        """All rates in eighths."""
        return range(self.least, int(self.highest * EIGHTHS) + 1)

    def costs(self, unit: Unit, node: Node) -> Floats:
        """What the layer is expected to cost at each rate, f64[rates]."""
        predicted = unit.graph.require(node.name, PredictedError)
        if self.weights == "loss":
            weight = unit.graph.require(node.name, LossSensitivity).weight
        elif self.weights == "guided":
            weight = 1.0
        else:
            weight = 1 / predicted.energy if predicted.energy else 0.0
        bits = np.array(self.rates, dtype=np.float64) / EIGHTHS
        return weight * predicted.error * FALL**bits

    def sizes(self, node: Node) -> Integers:
        """What the layer takes of the budget at each rate, i64[rates]: eighths, or bytes."""
        if self.count == "codes":
            return node.rows * node.columns * np.array(self.rates, dtype=np.int64)
        shape, width = (node.rows, node.columns), self.width
        height = self.height or usual_height(node.rows, guided=self.weights == "guided")
        codecs = (TrellisCode.of(*shape, r, height=height, width=width) for r in self.rates)
        return np.array([codec.nbytes for codec in codecs], dtype=np.int64)

    def room(self, nodes: Sequence[Node], vocabulary: Sequence[tuple[int, int]]) -> Room:
        """What all layers may take together.

        Args:
            nodes: the layers.
            vocabulary: weights and bytes of embedding and head, where they are quantized.
        """
        weights = sum(node.rows * node.columns for node in nodes)
        if self.count == "codes":
            return Room(int(self.bits * EIGHTHS * weights), weights)
        if self.count == "layers":
            return Room(int(self.bits * weights / 8), weights)
        others = sum(count for count, _ in vocabulary)
        taken = sum(nbytes for _, nbytes in vocabulary)
        weights += others
        spent = 8 * taken / others if others else 0.0
        return Room(int(self.bits * weights / 8) - taken, weights, spent)

    @property
    def bits(self) -> Fraction:
        """The budget as its decimal text says."""
        return Fraction(str(self.budget))

    def allocate(self, costs: Floats, sizes: Integers, room: int) -> list[int]:
        """The rates, in eighths: from the lowest on, always the step that saves most for its size.

        Costs are convex, so that this is the optimum but for the last steps, which may not fit. The
        lowest rate fits.
        """
        left = room - int(sizes[:, 0].sum())
        places = [0] * len(sizes)

        def step(layer: int) -> tuple[float, int]:
            place = places[layer]
            saved = costs[layer, place] - costs[layer, place + 1]
            return -saved / (sizes[layer, place + 1] - sizes[layer, place]), layer

        queue = [step(layer) for layer in range(len(sizes)) if len(self.rates) > 1]
        heapify(queue)
        while queue:
            _, layer = heappop(queue)
            taken = int(sizes[layer, places[layer] + 1] - sizes[layer, places[layer]])
            if taken > left:
                continue
            left -= taken
            places[layer] += 1
            if places[layer] + 1 < len(self.rates):
                heappush(queue, step(layer))
        return [self.rates[place] for place in places]

    def equal(self, sizes: Integers, room: Room, nodes: Sequence[Node]) -> int:
        """The highest rate that all layers can have alike, in eighths."""
        fits = sizes.sum(0) <= room.units
        if not fits[0]:
            self.refuse(sizes, room, nodes)
        return self.rates[int(fits.sum()) - 1]

    def refuse(self, sizes: Integers, room: Room, nodes: Sequence[Node]) -> NoReturn:
        """Raise ``OrderOutOfRange``: the lowest rate is too high; say what budget would do."""
        unit = 1 / EIGHTHS if self.count == "codes" else 8
        over = unit * (int(sizes[:, 0].sum()) - room.units) / room.weights
        other = (
            f", or give embedding and head less than {room.vocabulary:.2f} bits: "
            "quantize-vocab{bits=4}"
            if room.vocabulary > DEAR
            else ""
        )
        least = math.ceil(1000 * (self.budget + over)) / 1000
        raise OrderOutOfRange(
            f"{self.budget:g} bits a weight cannot be had: with all layers at {self.lowest:g} it "
            f"is {least:g}",
            where=[f"%{node.name}" for node in nodes],
            help=f"choose a budget of {least:g} or more{other}",
        )
