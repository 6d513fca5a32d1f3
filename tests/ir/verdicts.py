"""Annotations that fit a linear of two_blocks, and what the verifier says of a graph."""

import pytest

from qdc.errors import InvalidGraph
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Factor, Kept, Moment, Orders, Packed, Salience
from qdc.ir.graph import LayerGraph
from qdc.ir.opaque import Opaque
from qdc.ir.verify import verify
from tests.support.graphs import (
    ref,
)

GOOD: dict[str, Annotation] = {
    "moment": Moment(tensor=ref("m", 8, 8), samples=1, tokens=1, masked=0.5),
    "factor": Factor(tensor=ref("f", 8, 8), damp=0.01, attempts=1, dead=(0, 7)),
    "salience": Salience(blocks=(1.0, 2.0), widths=(4, 4)),
    "orders": Orders(blocks=(1, 3), widths=(4, 4), budget=2),
    "ragged orders": Orders(blocks=(1, 2, 4), widths=(3, 3, 2)),
    "packed": Packed(tensors=(ref("p", 2),), suffixes=("p",), payload_bits=9, weights=128),
    "kept": Kept(reason="so"),
    "opaque": Opaque(unknown_tag="new", data={}),
}


def problems(graph: LayerGraph, tensors: set[str] | None = None) -> tuple[str, tuple[str, ...]]:
    """What the verifier says, and of which nodes."""
    with pytest.raises(InvalidGraph) as caught:
        verify(graph, tensors)
    return f"{caught.value.what}\n{caught.value.help}", caught.value.where
