"""The calibration stream: samples on their way through the model, stage by stage.

Between two stages only the frontier of live values is held (``frontier``). Values are computed with
the weights as they are at that moment, so inside ``stages(...)`` each stage sees the quantization
of the stages before it. Every linear is executed once for each sample, an expert's for the tokens
that are routed to it, unless a later pass rewrites what the stream has gone past: then it goes back
to where it entered the region.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdc.frontend.tracer import Program
from qdc.ir.graph import Stage
from qdc.ir.routing import ROUTED
from qdc.streaming.batches import PADDING, Batches
from qdc.streaming.execute import Environment
from qdc.streaming.route import Route
from qdc.streaming.states import Held, StateStore

NodeWeights = Callable[[str], Mapping[str, Tensor]]
"""``node name -> tensors by role``, in the compute dtype, as they stand now."""


@dataclass(frozen=True)
class Trail:
    """The way of a stream: with the weights of now it leads to the same values again."""

    stops: tuple[int, ...]
    """Every boundary at which values were held; each rounds them."""
    left: int
    """Nodes before this place are in a region that is finished."""
    calls: int
    """Linears executed, those of ways that were given up included."""
    routed: int
    """The same for the linears of experts, counted by tokens."""


class Stream(Route):
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
    ) -> None:
        """Start before the first region.

        Args:
            program: the traced model; its first input takes the token ids, the others are absent.
            batches: ``i64[b, length]`` token ids; ``Batches`` where they have segments.
            weights: gives each node's parameters as they stand at the time of the call.
            device: where values are computed; between stages they are held by ``states``.
            returns: whether to hold the values with which a region was entered until it is left,
                so that the stream can go back there.
            states: where values wait between stages, and in which dtype; one of its own if none is
                given. They are computed in fp32.
            part: the batches that this process moves; others move the rest.
        """
        batches = Batches.of(batches)
        batch, length = batches[0].shape
        super().__init__(program, device, batch, length, returns=returns)
        self.weights, self.states = weights, states or StateStore()
        self.tokens = torch.cat(batches.tokens)
        """``i64[samples, length]``: what was put in, in all processes together."""
        self.segments = None if batches.segments is None else torch.cat(batches.segments)
        """``i64[samples, length]``: which positions of a row see each other; None if all do."""
        self.padded = self.segments is not None and bool((self.segments == PADDING).any())
        """Whether some of the positions are no data."""
        self._rows, self._part = [len(batch) for batch in batches], part
        self._segments = None if self.segments is None else self.rows(self.segments)
        data = self.rows(self.data)
        self._places = [p.flatten().nonzero()[:, 0] if self.padded else None for p in data]
        self.kept = [self.states.hold({self.executor.tokens: batch}) for batch in batches[part]]
        self.mark()

    @property
    def masked(self) -> Tensor:
        """``bool[samples, length]``: which of the tokens are masked; padding never is."""
        return (self.tokens == self.graph.model.mask_token_id) & self.data

    @property
    def data(self) -> Tensor:
        """``bool[samples, length]``: which of the positions are no padding."""
        if self.segments is None:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        return self.segments != PADDING

    @property
    def split(self) -> bool:
        """Whether other processes move some of the batches."""
        return self._part != slice(None)

    @property
    def linear_calls(self) -> float:
        """Linears executed, counted once for each sample; an expert's by its share of tokens."""
        return self.executor.linear_calls + self.executor.routed_rows / self.tokens.shape[1]

    def batches(self) -> Batches:
        """The samples that are moved here, ``i64[b, length]`` each, as they were put in."""
        return self.samples()[self._part]

    def samples(self) -> Batches:
        """The samples of all processes, as they were put in."""
        segments = None if self.segments is None else torch.split(self.segments, self._rows)
        return Batches(torch.split(self.tokens, self._rows), segments)

    def places(self) -> list[Tensor | None]:
        """Of each batch that is moved here the places of its data, ``i64[n]`` in b * length.

        None where all of them are data.
        """
        return list(self._places)

    @property
    def trail(self) -> Trail:
        """The way up to here."""
        executor = self.executor
        return Trail(tuple(self.stops), self._left, executor.linear_calls, executor.routed_rows)

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
        self.mark()

    def join(self, other: "Stream") -> None:
        """Stand where another stream stands: with its values of as many batches as are here."""
        self.boundary, self.names = other.boundary, other.names
        self.kept = list(other.kept[: len(self.kept)])

    def rows(self, values: Tensor) -> list[Tensor]:
        """Of something with a row for each sample, the rows of each batch that is moved here."""
        return list(torch.split(values, self._rows))[self._part]

    def values(self, stage: Stage) -> Iterator[Tensor]:
        """Yield the value that the stage reads, batch by batch.

        ``[b, length, columns]``, or ``[n, columns]`` for the n tokens that an expert gets, and for
        those that are no padding.
        """
        pairs = zip(self.compute((stage.value,)), self.places(), strict=True)
        for found, places in pairs:
            yield self.at(stage.value, found[stage.value], places)

    def at(self, name: str, value: Tensor, places: Tensor | None) -> Tensor:
        """A value at some places of its batch, ``[n, columns]``; as it is where there are none.

        What experts read and give has rows for data alone, and stays as it is.
        """
        if places is None or self.graph[name].type.shape[:1] == (ROUTED,):
            return value
        return value.flatten(0, -2).index_select(0, places.to(value.device))

    def compute(
        self, wanted: tuple[str, ...], everywhere: str | None = None
    ) -> Iterator[Environment]:
        """Yield values ahead of the boundary, batch by batch, on the device; nothing moves.

        They are whole: padding is in them, but for what experts read and give.

        Args:
            wanted: names of the values.
            everywhere: a ``rows`` node; as if the router sent every token to its expert.
        """
        held = set(self.names)
        if everywhere is not None:
            held = held - self.executor.derived(everywhere, self.boundary) | {everywhere}
        steps = self.executor.steps(wanted, held)
        parameters = self._parameters(steps) if self.kept else {}
        for index, kept in enumerate(self.kept):
            environment: Mapping[str, Tensor] = kept
            if everywhere is not None:
                rows = self._everywhere(index)
                environment = {name: kept[name] for name in held & set(kept)} | {everywhere: rows}
            with torch.no_grad():
                found = self.executor.run(
                    environment, steps, parameters, wanted, self.segments_of(index)
                )
            yield found

    def segments_of(self, index: int) -> Tensor | None:
        """Segments ``i64[b, length]`` of a batch that is moved here, by its place among those."""
        return None if self._segments is None else self._segments[index]

    def kept_bytes(self) -> int:
        """Bytes that are held between two stages."""
        return sum(held.nbytes for held in self.kept)

    @torch.no_grad()
    def move(self, steps: list[str], keep: frozenset[str]) -> None:
        """Compute the values to keep, batch by batch, with the weights of now."""
        parameters = self._parameters(steps) if self.kept else {}
        staying = [name for name in keep if name in self.names]
        for index, environment in enumerate(self.kept):
            missing, segments = keep.difference(staying), self.segments_of(index)
            found = self.executor.run(environment, steps, parameters, missing, segments)
            found |= {name: environment[name] for name in staying}
            self.kept[index] = self.states.hold(found)

    def _everywhere(self, index: int) -> Tensor:
        """Places ``i64[n]`` of all data of a batch."""
        places, count = self._places[index], self._rows[self._part][index]
        return torch.arange(count * self.tokens.shape[1]) if places is None else places

    def _parameters(self, steps: list[str]) -> dict[str, Mapping[str, Tensor]]:
        """What the steps read, as it stands now: decoded once for all batches."""
        return {name: self.weights(name) for name in steps}
