"""The output head of a model that is streamed: what it reads, and its logits part by part."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.ir.graph import LINEAR, LayerGraph, Stage
from qdc.models.predictions import sources
from qdc.numerics.products import linear

POSITIONS = 256
"""Positions whose logits are computed at once: f64[256, vocabulary]."""


def output_head(graph: LayerGraph, help: str) -> Stage:
    """The linear at the model's end. Raises ``UnsupportedModel`` with ``help`` if there is none."""
    head = list(graph)[-1]
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


def head_logits(hidden: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """``f64[n, vocabulary]`` of ``[n, columns]``; ``weights`` are the head's by role."""
    return linear(hidden, weights["weight"], weights.get("bias")).double()
