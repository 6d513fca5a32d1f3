"""Statistics of experts: from the tokens routed to each, or from all tokens if those are too few.

What an expert reads has a row for each token that the router sends to it, so its second moment is
already that of its own tokens. An expert that sees fewer tokens than its statistics need gets the
pooled ones of its block: those of the expert fed with every token, whatever the router says.
"""

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidCalibration, UnsupportedModel
from qdc.ir.graph import LayerGraph, Node, Stage
from qdc.ir.routing import ROWS, rows_of
from qdc.passkit.calibration import CalibrationOptions
from qdc.passkit.lockstep import lockstep
from qdc.passkit.source import Source
from qdc.streaming.execute import Environment
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit

Wave = Sequence[tuple[Stage, tuple[Node, ...]]]
"""Stages that do not hang on each other, with those of their layers that are to be quantized."""
MOST = 2
"""What a wave reads of one batch is computed in parts, of so many times the widest dense value."""


class ExpertOptions(CalibrationOptions):
    """A pass that draws samples and takes moments, also of experts."""

    least_tokens: int | None = Field(
        default=None,
        ge=1,
        description="with fewer routed tokens an expert gets the statistics of all tokens; "
        "as many as the layer has inputs if not given",
    )

    def check(self, graph: LayerGraph) -> None:
        """Refuse also a number of tokens for a model without experts."""
        super().check(graph)
        if self.least_tokens is not None and not any(node.op == ROWS for node in graph):
            raise InvalidCalibration(
                "least-tokens is given, and the model has no experts", help="leave it out"
            )

    def least(self, columns: int) -> int:
        """Tokens that the statistics of a layer of this many inputs need.

        Fewer than the inputs leave the moment singular: it says nothing of some directions.
        """
        return columns if self.least_tokens is None else self.least_tokens

    def source(self, unit: Unit, stream: Stream, stage: Stage, layers: Sequence[Node]) -> Source:
        """The one of a single stage, see ``sources``."""
        return self.sources(unit, stream, ((stage, tuple(layers)),))[stage.value]

    def sources(self, unit: Unit, stream: Stream, wave: Wave) -> dict[str, Source]:
        """Count the tokens of each stage and decide; remark on layers that see too few.

        Args:
            unit: of the layers.
            stream: before the wave.
            wave: stages whose statistics are to be taken.

        Returns:
            By the value that each stage reads.
        """
        counted = tokens_of(stream, [stage for stage, _ in wave])
        routed = [v for v in counted if rows_of(unit.graph, v) is not None]
        if routed:
            sums = unit.total(stream, *(count for value in routed for count in counted[value]))
            counted |= dict(zip(routed, zip(sums[::2], sums[1::2], strict=True), strict=True))
        left_out = int(stream.data.sum()) - int(stream.counting.sum())
        found: dict[str, Source] = {}
        for stage, layers in wave:
            count, masked = counted[stage.value]
            needed = self.least(layers[0].columns)
            if count >= needed or stage.value not in routed:
                found[stage.value] = Source(masked / max(1, count), None, left_out, count)
                continue
            for node in layers:
                unit.remark("missed", node, reason="few routed tokens", tokens=count, needed=needed)
            every = stream.masked[stream.counting]
            found[stage.value] = Source(
                every.double().mean().item(), count, left_out, every.numel()
            )
        return found


def weighed(
    stream: Stream,
    stage: Stage,
    others: tuple[str, ...] = (),
    *,
    pooled: bool = False,
    weights: Tensor | None = None,
) -> "Iterator[tuple[Reading, Tensor | None]]":
    """Yield what a stage reads, and what each of its rows counts; None if all count the same.

    A row that belongs to a whole sample, or to one place of all samples, counts the mean of these
    tokens. Arguments as those of ``read``. Without ``weights``, ``f32[samples, length]``, the
    stream's own count.

    Raises:
        UnsupportedModel: rows belong to neither of these, and tokens do not all count the same.
    """
    every, value = {stage.value} if pooled else (), stage.value
    parts = weighed_together(stream, (stage,), {value: weights}, {value: others}, pooled=every)
    for found in parts:
        yield found[value]


def weighed_together(
    stream: Stream,
    stages: Sequence[Stage],
    weights: Mapping[str, Tensor | None],
    others: Mapping[str, tuple[str, ...]],
    *,
    pooled: Collection[str] = (),
) -> "Iterator[dict[str, tuple[Reading, Tensor | None]]]":
    """The same for some stages of a wave, by the names of the values that they read.

    Arguments as those of ``read_together``; ``weights`` by value, None where the stream's own
    count. Raises ``UnsupportedModel`` as ``weighed``.
    """
    counts = {
        stage.value: stream.token_weights if found is None else found
        for stage in stages
        for found in (weights.get(stage.value),)
    }
    facts = {value: stream.masked if given is None else given for value, given in counts.items()}

    def counted(found: dict[str, Reading]) -> dict[str, tuple[Reading, Tensor | None]]:
        return {
            stage.value: (
                found[stage.value],
                None if counts[stage.value] is None else _of_rows(found[stage.value], stage),
            )
            for stage in stages
        }

    yield from map(counted, read_together(stream, stages, facts, others, pooled=pooled))


def _of_rows(part: "Reading", stage: Stage) -> Tensor:
    """The weights of tokens, ``[b, length]`` or ``[n]``, for the rows of a value."""
    weights, wanted = part.facts, part.value.shape[:-1]
    if weights.shape == wanted:
        return weights
    if weights.ndim == 2:
        for axis in (1, 0):
            mean = weights.mean(axis)
            if len(mean) == wanted.numel():
                return mean.reshape(wanted)
    raise UnsupportedModel(
        "tokens are weighed, and layers of this model read something else than a row for each "
        "token, each sample or each place",
        where=[f"%{stage.value}"],
        help="leave token-weights and masked-weight out",
    )


class Reading(NamedTuple):
    """What a stage reads of one batch."""

    value: Tensor
    """``[b, length, columns]``, or ``[n, columns]`` of an expert or without padding."""
    facts: Tensor
    """``[b, length]`` or ``[n]``: what the caller knows of each of these tokens."""
    found: Environment
    """All that was computed."""
    rows: Tensor | None
    """``i64[n]``: places of these tokens in the batch; None where it is read as a whole."""


def read(
    stream: Stream,
    stage: Stage,
    facts: Tensor,
    others: tuple[str, ...] = (),
    *,
    pooled: bool = False,
) -> Iterator[Reading]:
    """Yield what a stage reads, batch by batch; the stream stands before the stage.

    Padding is left out, of the further values too.

    Args:
        stream: the samples.
        stage: whose value is wanted.
        facts: ``[samples, length]``: something of each token.
        others: names of further values to compute.
        pooled: as if the router sent every token to the expert that the stage belongs to.
    """
    every, value = {stage.value} if pooled else (), stage.value
    for found in read_together(stream, (stage,), {value: facts}, {value: others}, pooled=every):
        yield found[value]


def read_together(
    stream: Stream,
    stages: Sequence[Stage],
    facts: Mapping[str, Tensor],
    others: Mapping[str, tuple[str, ...]],
    *,
    pooled: Collection[str] = (),
) -> Iterator[dict[str, Reading]]:
    """Yield what some stages of a wave read, batch by batch and by the names of these values.

    Nothing of a batch is held here while the next one is computed.

    Args:
        stream: the samples, before the wave.
        stages: of one wave.
        facts: by value ``[samples, length]``: something of each token.
        others: by value the names of further values to compute.
        pooled: values that are read as if the router sent every token to their expert.
    """
    graph = stream.graph
    rows = {stage.value: rows_of(graph, stage.value) for stage in stages}
    wanted = [name for value in rows for name in (value, rows[value], *others.get(value, ()))]
    every = tuple(row for value, row in rows.items() if row is not None and value in pooled)
    computed = stream.compute(tuple(dict.fromkeys(n for n in wanted if n is not None)), every)
    parts = {value: stream.rows(given) for value, given in facts.items()}

    def readings(index: int, batch: tuple[Environment, Tensor | None]) -> dict[str, Reading]:
        found, data = batch
        given: dict[str, Reading] = {}
        for stage in stages:
            row, own = rows[stage.value], (stage.value, *others.get(stage.value, ()))
            places = data if row is None else found[row]
            value = stream.reading(stage, found[stage.value], index)
            seen = {name: found[name] for name in own}
            if row is None:
                seen = {name: stream.at(name, each, data) for name, each in seen.items()}
                value = stream.at(stage.value, value, data)
            fact = _at(parts[stage.value][index], places)
            given[stage.value] = Reading(value, fact, seen, places)
        return given

    yield from map(readings, itertools.count(), lockstep(computed, iter(stream.places())))


def parts_of(
    stream: Stream, stages: Sequence[Stage], pooled: Collection[str] = ()
) -> list[list[Stage]]:
    """Stages of a wave in parts whose values are computed at once: bounded, however many there are.

    Which part a stage is in changes no value.
    """
    tokens = stream.sizes["B"] * stream.sizes["L"]
    sizes = {
        stage.value: stream.graph[stage.layers[0]].columns
        * (tokens if stage.value in pooled else stream.rows_read(stage))
        for stage in stages
    }
    most = MOST * tokens * max(stream.graph[stage.layers[0]].columns for stage in stages)
    parts: list[list[Stage]] = []
    filled = 0
    for stage in stages:
        if not parts or filled + sizes[stage.value] > most:
            parts.append([])
            filled = 0
        parts[-1].append(stage)
        filled += sizes[stage.value]
    return parts


def tokens_of(stream: Stream, stages: Sequence[Stage]) -> dict[str, tuple[int, int]]:
    """Number of tokens that each stage reads, and how many of them are masked, by its value.

    Of experts only the routing is computed; the stream stands before the wave of the stages.
    """
    rows = {stage.value: rows_of(stream.graph, stage.value) for stage in stages}
    facts = torch.stack((stream.counting, stream.masked & stream.counting), -1)
    whole = int(facts[..., 0].sum()), int(facts[..., 1].sum())
    found = {value: whole if row is None else (0, 0) for value, row in rows.items()}
    routed = {value: row for value, row in rows.items() if row is not None}
    if not routed:
        return found
    for computed, part in zip(
        stream.compute(tuple(routed.values())), stream.rows(facts), strict=True
    ):
        for value, row in routed.items():
            seen, masked = _at(part, computed[row]).unbind(-1)
            count, sums = found[value]
            found[value] = count + int(seen.sum()), sums + int(masked.sum())
    return found


def paired(now: Reading, original: Reading) -> Tensor:
    """What the original model has in place of ``now.value``, token by token.

    Both route for themselves. A token that only the quantized model sends to the expert has no
    counterpart: its own value stands in for it, so that it counts as not drifted. One that only
    the original sends there is left out.
    """
    if now.rows is None or original.rows is None:
        return original.value
    # Rows ascend in both, so the common ones meet in the same order.
    here = torch.isin(now.rows, original.rows, assume_unique=True)
    there = torch.isin(original.rows, now.rows, assume_unique=True)
    matched = now.value.clone()
    matched[here] = original.value[there]
    return matched


def _at(facts: Tensor, rows: Tensor | None) -> Tensor:
    return facts if rows is None else facts.flatten(0, 1)[rows.to(facts.device)]
