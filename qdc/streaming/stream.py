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
        batches: list[Tensor],
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
            batches: ``i64[b, length]`` token ids, no padding.
            weights: gives each node's parameters as they stand at the time of the call.
            device: where values are computed; between stages they are held by ``states``.
            returns: whether to hold the values with which a region was entered until it is left,
                so that the stream can go back there.
            states: where values wait between stages, and in which dtype; one of its own if none is
                given. They are computed in fp32.
            part: the batches that this process moves; others move the rest.
        """
        batch, length = batches[0].shape
        super().__init__(program, device, batch, length, returns=returns)
        self.weights, self.states = weights, states or StateStore()
        self.tokens = torch.cat(batches)
        """``i64[samples, length]``: what was put in, in all processes together."""
        self._rows, self._part = [len(batch) for batch in batches], part
        self.kept = [self.states.hold({self.executor.tokens: batch}) for batch in batches[part]]
        self.mark()

    @property
    def masked(self) -> Tensor:
        """``bool[samples, length]``: which of the tokens are masked."""
        mask = self.graph.model.mask_token_id
        if mask is None:
            return torch.zeros_like(self.tokens, dtype=torch.bool)
        return self.tokens == mask

    @property
    def split(self) -> bool:
        """Whether other processes move some of the batches."""
        return self._part != slice(None)

    @property
    def linear_calls(self) -> float:
        """Linears executed, counted once for each sample; an expert's by its share of tokens."""
        return self.executor.linear_calls + self.executor.routed_rows / self.tokens.shape[1]

    def batches(self) -> tuple[Tensor, ...]:
        """The samples, ``i64[b, length]`` each, as they were put in."""
        return tuple(self.rows(self.tokens))

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

        ``[b, length, columns]``, or ``[n, columns]`` for the n tokens that an expert gets.
        """
        for found in self.compute((stage.value,)):
            yield found[stage.value]

    def compute(
        self, wanted: tuple[str, ...], everywhere: str | None = None
    ) -> Iterator[Environment]:
        """Yield values ahead of the boundary, batch by batch, on the device; nothing moves.

        Args:
            wanted: names of the values.
            everywhere: a ``rows`` node; as if the router sent every token to its expert.
        """
        held = set(self.names)
        if everywhere is not None:
            held = held - self.executor.derived(everywhere, self.boundary) | {everywhere}
        steps = self.executor.steps(wanted, held)
        parameters = self._parameters(steps) if self.kept else {}
        for count, kept in zip(self._rows[self._part], self.kept, strict=True):
            environment: Mapping[str, Tensor] = kept
            if everywhere is not None:
                rows = torch.arange(count * self.tokens.shape[1])
                environment = {name: kept[name] for name in held & set(kept)} | {everywhere: rows}
            with torch.no_grad():
                found = self.executor.run(environment, steps, parameters, wanted)
            yield found

    def kept_bytes(self) -> int:
        """Bytes that are held between two stages."""
        return sum(held.nbytes for held in self.kept)

    @torch.no_grad()
    def move(self, steps: list[str], keep: frozenset[str]) -> None:
        """Compute the values to keep, batch by batch, with the weights of now."""
        parameters = self._parameters(steps) if self.kept else {}
        staying = [name for name in keep if name in self.names]
        for index, environment in enumerate(self.kept):
            found = self.executor.run(environment, steps, parameters, keep.difference(staying))
            found |= {name: environment[name] for name in staying}
            self.kept[index] = self.states.hold(found)

    def _parameters(self, steps: list[str]) -> dict[str, Mapping[str, Tensor]]:
        """What the steps read, as it stands now: decoded once for all batches."""
        return {name: self.weights(name) for name in steps}
