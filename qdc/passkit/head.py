"""The output head of a model that is streamed: what it reads, and its logits part by part."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.ir.graph import LINEAR, LayerGraph, Stage
from qdc.models.predictions import sources
from qdc.numerics.products import linear

SOFT_CAP = "soft-cap"
"""What may stand behind the head: logits bent to stay within ``ModelFacts.logit_cap``."""
POSITIONS = 256
"""Positions whose logits are computed at once: f64[256, vocabulary]."""


def output_head(graph: LayerGraph, help: str) -> Stage:
    """The linear at the model's end. Raises ``UnsupportedModel`` with ``help`` if there is none."""
    *_, head = list(graph)
    if head.op == SOFT_CAP and graph.model.logit_cap is not None:
        head = graph[head.inputs[0]]
    if head.op != LINEAR:
        raise UnsupportedModel(
            f"predictions are read from a linear at the end, and the model ends in {head.op}",
            where=[f"%{head.name}"],
            help=help,
        )
    return Stage(value=head.inputs[0], layers=(head.name,))


def masked_positions(masked: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows and places of ``bool[b, length]``, ``i64`` of at most ``POSITIONS`` each."""
    rows, places = masked.nonzero(as_tuple=True)
    yield from zip(torch.split(rows, POSITIONS), torch.split(places, POSITIONS), strict=True)


def sources_within(rows: Tensor, places: Tensor, shift: int, segments: Tensor | None) -> Tensor:
    """Positions ``i64[n]`` whose logits predict the tokens at ``places`` of ``rows``.

    As in a window of its own, the first token of a segment has none in front of it: the position
    before belongs to another document, which this one is not to see. ``segments`` are
    ``i64[b, length]``; None if all positions of a row see each other.
    """
    found = sources(places, shift)
    if segments is None:
        return found
    return torch.where(segments[rows, found] == segments[rows, places], found, places)


def head_logits(hidden: Tensor, weights: Mapping[str, Tensor], cap: float | None = None) -> Tensor:
    """``f64[n, vocabulary]`` of ``[n, columns]``.

    Args:
        hidden: what the head reads.
        weights: the head's, by role.
        cap: what logits are bent to stay within; None if they are not.
    """
    return bent(linear(hidden, weights["weight"], weights.get("bias")).double(), cap)


def bent(logits: Tensor, cap: float | None) -> Tensor:
    """Logits ``[n, vocabulary]`` within a cap; as they are without one."""
    return logits if cap is None else (logits / cap).tanh() * cap


def through_cap(slope: Tensor, logits: Tensor, cap: float | None) -> Tensor:
    """From a derivative by bent logits, all ``[n, vocabulary]``, to that by what the head gives."""
    return slope if cap is None else slope * (1 - (logits / cap).square())
