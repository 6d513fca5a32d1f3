"""Statistics of experts: from the tokens routed to each, or from all tokens if those are too few.

What an expert reads has a row for each token that the router sends to it, so its second moment is
already that of its own tokens. An expert that sees fewer tokens than its statistics need gets the
pooled ones of its block: those of the expert fed with every token, whatever the router says.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from qdc.errors import InvalidCalibration, UnsupportedModel
from qdc.ir.graph import LayerGraph, Node, Stage
from qdc.ir.routing import ROWS, rows_of
from qdc.passkit.calibration import CalibrationOptions
from qdc.streaming.execute import Environment
from qdc.streaming.stream import Stream
from qdc.streaming.unit import Unit


class Source(NamedTuple):
    """Which tokens the statistics of a stage come from."""

    masked: float
    """Share of them that is masked."""
    routed: int | None = None
    """Tokens of the expert, if they are too few and all tokens stand in; None otherwise."""

    @property
    def pooled(self) -> bool:
        """Whether the expert is fed with all tokens."""
        return self.routed is not None


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
        """Count the tokens of a stage and decide; remark on layers that see too few.

        Args:
            unit: of the layers.
            stream: before the stage.
            stage: whose statistics are to be taken.
            layers: those of its layers that are to be quantized.
        """
        count, masked = tokens_of(stream, stage)
        if rows_of(unit.graph, stage.value) is not None:
            count, masked = unit.total(stream, count, masked)
        needed = self.least(layers[0].columns)
        if count >= needed or rows_of(unit.graph, stage.value) is None:
            return Source(masked / max(1, count))
        for node in layers:
            unit.remark("missed", node, reason="few routed tokens", tokens=count, needed=needed)
        return Source(stream.masked[stream.data].double().mean().item(), routed=count)


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
    weights = stream.token_weights if weights is None else weights
    facts = stream.masked if weights is None else weights
    for part in read(stream, stage, facts, others, pooled=pooled):
        yield part, None if weights is None else _of_rows(part, stage)


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
    rows = rows_of(stream.graph, stage.value)
    wanted = (stage.value, *others, *(() if rows is None else (rows,)))
    everywhere = rows if pooled else None
    computed, parts = stream.compute(wanted, everywhere), stream.rows(facts)
    batches = enumerate(zip(computed, parts, stream.places(), strict=True))
    for index, (found, part, data) in batches:
        value = stream.reading(stage, found[stage.value], index)
        places = data if rows is None else found[rows]
        if rows is None:
            found = {name: stream.at(name, each, data) for name, each in found.items()}
            value = stream.at(stage.value, value, data)
        yield Reading(value, _at(part, places), found, places)


def tokens_of(stream: Stream, stage: Stage) -> tuple[int, int]:
    """Number of tokens that a stage reads, and how many of them are masked.

    Of an expert only the routing is computed; the stream stands before the stage.
    """
    rows, hidden = rows_of(stream.graph, stage.value), stream.masked
    if rows is None:
        return int(stream.data.sum()), int(hidden.sum())
    parts = zip(stream.compute((rows,)), stream.rows(hidden), strict=True)
    masked = [_at(part, found[rows]) for found, part in parts]
    return sum(map(len, masked)), sum(int(part.sum()) for part in masked)


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
    return facts if rows is None else facts.flatten()[rows.to(facts.device)]
