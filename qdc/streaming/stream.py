"""The calibration stream: samples on their way through the model, stage by stage.

Between two stages only the frontier of live values is held (``frontier``). Values are computed with
the weights as they are at that moment, so inside ``stages(...)`` each stage sees the quantization
of the stages before it. Every linear is executed once for each sample, an expert's for the tokens
that are routed to it, unless a later pass rewrites what the stream has gone past: then it goes back
to where it entered the region. ``qdc plan`` goes the same way without data (``streamforecast``).
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from qdc.frontend.tracer import Program
from qdc.ir.graph import Region, Stage
from qdc.ir.routing import GIVE, ROUTED
from qdc.ir.types import BYTES
from qdc.models.experts import routed_share
from qdc.streaming.batches import Batches
from qdc.streaming.execute import Environment, Executor
from qdc.streaming.frontier import values_to_keep
from qdc.streaming.inputs import LayerInputs
from qdc.streaming.memory import give_back_growth
from qdc.streaming.parameters import NodeWeights, Parameters, parameters_of
from qdc.streaming.states import Held, StateStore
from qdc.streaming.streamsamples import StreamSamples
from qdc.streaming.trail import Trail

COSTLY = frozenset({"linear", "attention", "input", "embedding", "routing", GIVE})
"""Operations whose values may be kept but are not computed twice. Routing is held as weights, never
as the scores before it: rounded scores could choose other experts. What experts gave is held as one
sum, never apart: only that is bounded however uneven the routing is."""
Entrance = tuple[int, tuple[str, ...], list[Held], int]
"""Where a region was entered: boundary, names and values that are held there, number of stops."""


class Stream(StreamSamples):
    """Batches of samples at one place of the model."""

    def __init__(
        self,
        program: Program,
        batches: Sequence[Tensor],
        weights: NodeWeights,
        device: torch.device,
        *,
        returns: bool = False,
        states: StateStore | None = None,
        part: slice = slice(None),
        decoded: int | None = None,
        inputs: LayerInputs | None = None,
        original: bool = False,
        ready: Callable[[Sequence[str]], None] | None = None,
    ) -> None:
        """Start before the first region.

        Args:
            program: the traced model; its first input takes the token ids, the others are absent.
            batches: ``i64[b, length]`` token ids; ``Batches`` where they have segments or weights.
            weights: gives each node's parameters as they stand at the time of the call.
            device: where values are computed; between stages they are held by ``states``.
            returns: whether to hold the values with which a region was entered until it is left,
                so that the stream can go back there.
            states: where values wait between stages, and in which dtype; one of its own if none is
                given. They are computed in fp32.
            part: the batches that this process moves; others move the rest.
            decoded: bytes of parameters in fp32 that one move may hold at a time. Where experts of
            a wave have more, each is made ready when its turn comes, for every batch anew. None is
            no limit.
            inputs: what layers make of the values that they read; nothing if not given.
            original: whether the weights are the original ones: then nothing is made of values on
                the way, and ``reading`` gives the original value in the layers' coordinates.
            ready: called before samples move, with the nodes whose weights that takes; none are
                named where no batch is moved.
        """
        batches = Batches.of(batches)
        super().__init__(batches, part, program.graph.model.mask_token_id)
        self.inputs, self._original = inputs, original
        self.executor = Executor(program, device, None if original else inputs)
        self.order = self.executor.order
        self.graph, self.weights, self.returns = program.graph, weights, returns
        self.ready = ready
        self.share = routed_share(program.module)
        """Share of the tokens that an expert gets, as if the router were even."""
        self.sizes = self.dimensions(*batches[0].shape)
        """Of a whole batch, by the names of symbolic dimensions."""
        self.decoded = decoded
        self.boundary = self._left = 0
        """Nodes before the boundary have been computed; those before ``left`` are finished."""
        self.names: tuple[str, ...] = (self.order.tokens,)
        """Of the values that are kept."""
        self.states = states or StateStore()
        self.kept = [self.states.hold({self.order.tokens: batch}) for batch in batches[part]]
        """The values, batch by batch."""
        self.stops: list[int] = []
        """Every boundary at which values were held; each rounds them."""
        self.mark()

    @property
    def linear_calls(self) -> float:
        """Linears executed, counted once for each sample; an expert's by its share of tokens."""
        return self.executor.linear_calls + self.executor.routed_rows / self.tokens.shape[1]

    @property
    def trail(self) -> Trail:
        """The way up to here."""
        executor = self.executor
        most = int(executor.most) if math.isfinite(executor.most) else None
        calls, routed = executor.linear_calls, executor.routed_rows
        return Trail(tuple(self.stops), self._left, calls, routed, most)

    def follow(self, trail: Trail, between: Callable[[], None]) -> None:
        """Go a whole trail from the start; ``between`` is called after each stop."""
        for stop in trail.stops:
            self.advance(stop)
            between()
        self.take_over(trail, self.kept)

    def take_over(self, trail: Trail, kept: Sequence[Held]) -> None:
        """Stand at the end of a trail, with the values that were held there."""
        self.stops, self._left = list(trail.stops), trail.left
        self.boundary = trail.stops[-1] if trail.stops else 0
        self.kept = list(kept)
        self.names = tuple(self.kept[0]) if self.kept else self.names
        self.executor.linear_calls = trail.calls
        self.executor.routed_rows = trail.routed
        if trail.most is not None:  # what did not fit is not tried again
            self.executor.most = min(self.executor.most, trail.most)
        self.mark()

    def join(self, other: "Stream") -> None:
        """Stand where another stream stands: with its values of as many batches as are here."""
        self.boundary, self.names = other.boundary, other.names
        self.kept = list(other.kept[: len(self.kept)])

    def start(self, region: Region) -> None:
        """Advance to the first node of a region, or go back there."""
        self._go(self.order.span(region).start)
        self.mark()
        self.stopped()

    def enter(self, stage: Stage) -> None:
        """Advance to just before the first linear of the stage's wave, or go back there."""
        self._go(self.order.entrance(stage))
        self.stopped()

    def leave(self, region: Region) -> None:
        """Advance past a region; does nothing if the samples are past it, or if none follows."""
        self._left = self.order.span(region).stop
        if region is not self.graph.regions[-1]:
            self.advance(self._left)
        self.mark()
        self.stopped()

    def passed(self, name: str) -> bool:
        """Whether values that hang on this node were computed, in a region not yet left."""
        return self._left <= self.order.place[name] < self.boundary

    def rewind(self) -> None:
        """Go back to where the region was entered. Raises ``RuntimeError`` if not held."""
        if not self.returns:
            raise RuntimeError("the stream does not hold what it would go back to")
        self.boundary, self.names, kept, stops = self._entrance
        self.kept, self.stops = list(kept), self.stops[:stops]

    def mark(self) -> None:
        """Hold what is kept here as the entrance of the region, where samples can go back."""
        if self.returns:
            self._entrance = self.boundary, self.names, list(self.kept), len(self.stops)

    def stopped(self) -> None:
        """Called where the samples stand still: before a stage, or between two regions."""

    def advance(self, boundary: int) -> None:
        """Compute what the nodes from ``boundary`` on need, and keep the cheapest part of it."""
        if boundary <= self.boundary:
            return
        order = self.order
        needed = order.read_after(boundary)
        reach = [*self.names, *order.steps(needed, self.names)]
        keep = values_to_keep(
            order.edges,
            reach,
            needed,
            {name: self._nbytes(name) for name in reach},
            [name for name in reach if self.graph[name].op in COSTLY],
        )
        steps = order.steps(keep, self.names)
        if self.ready is not None:
            self.ready(steps if self.kept else ())
        self.move(steps, keep)
        self.boundary, self.names = boundary, tuple(keep)
        self.stops.append(boundary)

    @torch.no_grad()
    def move(self, steps: list[str], keep: frozenset[str]) -> None:
        """Compute the values to keep, batch by batch, with the weights of now."""
        parameters = self._parameters(steps)
        staying = [name for name in keep if name in self.names]
        missing = tuple(keep.difference(staying))
        for index, held in enumerate(self.kept):
            found = self._found(index, held, steps, parameters, missing)
            found |= {name: held[name] for name in staying}
            self.kept[index] = self.states.hold(found)
            del found  # or it is held while the next batch is computed

    def values(self, stage: Stage) -> Iterator[Tensor]:
        """Yield what the layers of a stage multiply, batch by batch: rotated, if they are.

        ``[b, length, columns]``, or ``[n, columns]`` for the n tokens that an expert gets, and for
        those that are no padding.
        """
        pairs = zip(self.compute((stage.value,)), self._places, strict=True)
        for index, (found, places) in enumerate(pairs):
            value = self.reading(stage, found[stage.value], index)
            yield self.at(stage.value, value, places)

    def reading(self, stage: Stage, value: Tensor, index: int) -> Tensor:
        """What the layers of a stage make of the value ``[..., columns]`` that they read.

        Through the original model nothing is rounded: it is the value in the layers' coordinates.

        Args:
            stage: the stage.
            value: its value, whole, padding included.
            index: of the batch, among those that are moved here.
        """
        if self.inputs is None:
            return value
        layer = self.inputs.reader(stage)
        if self._original:
            return self.inputs.rotate(layer, value)
        return self.inputs.read(layer, value, self.masked_of(index))

    def at(self, name: str, value: Tensor, places: Tensor | None) -> Tensor:
        """A value at some places of its batch, ``[n, columns]``; as it is where there are none.

        What experts read and give has rows for data alone, and stays as it is.
        """
        if places is None or self.graph[name].type.shape[:1] == (ROUTED,):
            return value
        return value.flatten(0, -2).index_select(0, places.to(value.device))

    def compute(
        self, wanted: tuple[str, ...], everywhere: Collection[str] = ()
    ) -> Iterator[Environment]:
        """Yield values ahead of the boundary, batch by batch, on the device; nothing moves.

        They are whole: padding is in them, but for what experts read and give.

        Args:
            wanted: names of the values.
            everywhere: ``rows`` nodes; as if the router sent every token to their experts.
        """
        held = set(self.names)
        if everywhere:
            held = held - self.order.derived(everywhere, self.boundary) | set(everywhere)
        steps = self.order.steps(wanted, held)
        parameters = self._parameters(steps)
        for index, kept in enumerate(self.kept):
            environment: Mapping[str, Tensor] = kept
            if everywhere:
                rows = dict.fromkeys(everywhere, self._data_places(index))
                environment = {name: kept[name] for name in held & set(kept)} | rows
            # Without a name here: what was given is not held while the next batch is computed.
            yield self._found(index, environment, steps, parameters, wanted)

    @torch.no_grad()
    def _found(
        self,
        index: int,
        environment: Mapping[str, Tensor],
        steps: list[str],
        parameters: Parameters,
        wanted: tuple[str, ...],
    ) -> Environment:
        segments, masked = self.segments_of(index), self.masked_of(index)
        found = self.executor.run(environment, steps, parameters, wanted, segments, masked)
        give_back_growth()
        return found

    def rows_read(self, stage: Stage) -> int:
        """Tokens of a whole batch that a stage reads; of an expert an even share."""
        routed = self.graph[stage.value].type.shape[:1] == (ROUTED,)
        return self.sizes[ROUTED] if routed else self.sizes["B"] * self.sizes["L"]

    def masked_of(self, index: int) -> Tensor | None:
        """Which tokens are masked, bool[b, length], of a batch, by its place among those here."""
        return None if self.inputs is None else self._masked[index].to(self.executor.device)

    def kept_bytes(self) -> int:
        """Bytes that are held between two stages."""
        return sum(held.nbytes for held in self.kept)

    def results(self, region: Region) -> tuple[str, ...]:
        """Names of the values that a region hands on: those that nodes after it read."""
        read = self.order.read_after(self.order.span(region).stop)
        return tuple(name for name in region.nodes if name in read)

    def dimensions(self, samples: int, length: int) -> Mapping[str, int]:
        """Sizes of so many samples by the names of symbolic dimensions."""
        rows = max(1, round(self.share * samples * length))
        return {"B": samples, "L": length, ROUTED: rows}

    def _go(self, place: int) -> None:
        if place < self.boundary:
            self.rewind()
        self.advance(place)

    def _nbytes(self, name: str) -> int:
        kind = self.graph[name].type
        return max(1, kind.elements(self.sizes) * BYTES[kind.dtype])

    def _parameters(self, steps: list[str]) -> Parameters:
        """What the steps compute with; nothing where no batch is moved."""
        return parameters_of(self.graph, self.weights, steps, self.decoded) if self.kept else {}
