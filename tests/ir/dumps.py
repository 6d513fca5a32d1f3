"""A small dump with one annotation of every kind, and ways to spoil it."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import msgpack

from qdc.errors import InvalidDump
from qdc.format.codec import Lowered
from qdc.format.multibinary import MultiBinary
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import BUILT_IN, Factor, Kept, Moment, Orders, Packed, Salience
from qdc.ir.dump import from_bytes, to_bytes
from qdc.ir.graph import LayerGraph
from qdc.ir.opaque import Opaque
from qdc.ir.printer import as_data, render
from tests.support.graphs import annotated, ref, two_blocks


class LoweredToy(Lowered):
    """What a quantizer brings in its own file: an annotation that carries a codec."""

    tag: ClassVar[str] = "lowered-toy"
    codec: MultiBinary

    def text(self) -> str:
        return f"{len(self.codec.orders)} blocks{self.error_text()}"


KINDS: tuple[type[Annotation], ...] = (*BUILT_IN, LoweredToy)
TAGS = {kind.tag: kind for kind in KINDS}


def small() -> LayerGraph:
    """A graph that carries one annotation of every kind."""
    packed = Packed(tensors=(ref("p", 4),), suffixes=("p",), payload_bits=256, weights=128)
    graph = annotated(
        two_blocks(),
        h0__gate=Moment(tensor=ref("m", 8, 8), samples=4, tokens=64, masked=0.1 + 0.2),
        h0__up=Orders(blocks=(1, 3), widths=(4, 4), budget=2),
        h0__down=Salience(blocks=(1 / 3, 5e-324), widths=(8, 8)),
        h1__gate=packed,
        h1__up=Factor(tensor=ref("f", 8, 8), damp=0.01, attempts=2, dead=(1,)),
        h1__down=Opaque(unknown_tag="future", data={"a": [1, 2.5, None, b"\xff"]}),
        head=Kept(reason="outside the repeated blocks"),
    )
    codec = MultiBinary(rows=16, columns=8, block=8, orders=(3,))
    signs = ref("w", 16, 3, 8, dtype="i8")
    graph.annotate(
        "h1.gate", LoweredToy(codec=codec, tensors=(signs,), suffixes=("signs",), error=math.inf)
    )
    graph.after = "calibrate-mcs,sensitivity"
    return graph


SMALL = to_bytes(small())


def content(graph: LayerGraph) -> list[list[Annotation]]:
    return [list(graph.annotations(node.name).values()) for node in graph]


def repacked(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The small dump after ``change`` has edited its plain data."""
    data = msgpack.unpackb(SMALL)
    change(data)
    packed: bytes = msgpack.packb(data)
    return packed


def accepted(data: bytes) -> bool:
    """Whether the bytes give a graph; if so, everything that is done with one must work."""
    try:
        graph = from_bytes(data, TAGS)
    except InvalidDump:
        return False
    assert render(graph)
    assert as_data(graph)
    again = to_bytes(graph)
    assert to_bytes(from_bytes(again, TAGS)) == again
    return True


def node(data: dict[str, Any], index: int) -> dict[str, Any]:
    found: dict[str, Any] = data["structure"]["nodes"][index]
    return found


def note(data: dict[str, Any], tag: str) -> dict[str, Any]:
    found: dict[str, Any] = next(n[2] for n in data["annotations"] if n[1] == tag)
    return found
