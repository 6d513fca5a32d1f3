"""Arithmetic that a run would do, by the kind of unit that does it."""

from collections.abc import Mapping
from dataclasses import dataclass
from operator import add

from qdc.ir.graph import LINEAR, LayerGraph
from qdc.ir.routing import ROUTED
from qdc.ir.types import BYTES, ValueType

ATTENTION = "attention"
MULTIPLY_ADD = 2
FP32 = 4
"""Bytes of a number that is computed with."""


@dataclass(frozen=True)
class Work:
    """Amounts of work; they add up."""

    products: float = 0
    """Floating-point operations in fp32 matrix products."""
    exact: float = 0
    """The same in fp64: factorizations, solves, measured errors."""
    elements: float = 0
    """Numbers read or written by elementwise operations in fp32."""
    linears: float = 0
    """Linears executed for calibration, counted once for each sample."""

    def __add__(self, other: "Work") -> "Work":
        """The sum of two amounts."""
        return Work(*map(add, vars(self).values(), vars(other).values()))

    def times(self, factor: float) -> "Work":
        """So many times as much."""
        return Work(*(factor * amount for amount in vars(self).values()))

    @property
    def flops(self) -> float:
        """All operations together; an element counts one."""
        return self.products + self.exact + self.elements


def node_work(graph: LayerGraph, name: str, sizes: Mapping[str, int]) -> Work:
    """Work of executing one node on a batch of these sizes."""
    node = graph[name]
    given = node.type.elements(sizes)
    if node.op == LINEAR:
        routed = node.type.shape[:1] == (ROUTED,)
        samples = sizes[ROUTED] / sizes["L"] if routed else sizes["B"]
        return Work(products=MULTIPLY_ADD * given * node.columns, linears=samples)
    if node.op == ATTENTION:
        # Scores and the mix of values: each width times length for each position.
        return Work(products=2 * MULTIPLY_ADD * given * sizes["L"])
    if node.op == "input":
        return Work()
    read = sum(graph[read].type.elements(sizes) for read in node.inputs)
    return Work(elements=given + read)


def bytes_of(kind: ValueType, sizes: Mapping[str, int], floating: int) -> int:
    """Bytes of a value with floats of this many bytes; integers are as wide as they are."""
    wide = floating if kind.dtype in ("f64", "f32", "f16", "bf16") else BYTES[kind.dtype]
    return kind.elements(sizes) * wide
