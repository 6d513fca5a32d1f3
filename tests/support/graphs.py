"""Small layer graphs, built by hand."""

from collections.abc import Iterable

from qdc.ir.annotation import Annotation
from qdc.ir.facts import ModelFacts
from qdc.ir.graph import LayerGraph, Node, Region, Stage, Structure
from qdc.ir.types import Dimension, Parameter, TensorRef, ValueType

FACTS = ModelFacts(family="toy", mask_token_id=3, vocabulary=1000, max_length=64)


def value(*shape: Dimension, dtype: str = "f32") -> ValueType:
    """``f32[shape]``."""
    return ValueType(dtype=dtype, shape=shape)


def ref(name: str, *shape: int, dtype: str = "f32") -> TensorRef:
    """A reference with a digest that belongs to no tensor."""
    return TensorRef(name=name, dtype=dtype, shape=shape, digest="0" * 64)


def source(name: str, *shape: Dimension) -> Node:
    """A graph input."""
    return Node(name=name, op="input", type=value(*shape))


def function(name: str, op: str, inputs: Iterable[str], *shape: Dimension) -> Node:
    """A node without parameters."""
    return Node(name=name, op=op, inputs=tuple(inputs), type=value(*shape))


def linear(name: str, reads: str, rows: int, columns: int, *, bias: bool = False) -> Node:
    """A linear in f16 that reads ``f32[B,L,columns]``."""
    owned = [Parameter(name=f"{name}.weight", dtype="f16", shape=(rows, columns))]
    if bias:
        owned.append(Parameter(name=f"{name}.bias", role="bias", dtype="f16", shape=(rows,)))
    return Node(
        name=name,
        op="linear",
        inputs=(reads,),
        type=value("B", "L", rows),
        path=f"body.{name}",
        parameters=tuple(owned),
    )


def structure(nodes: Iterable[Node], regions: Iterable[Region] = ()) -> Structure:
    """The structure of a graph called ``toy``."""
    return Structure(
        name="toy", prefix="body.", model=FACTS, nodes=tuple(nodes), regions=tuple(regions)
    )


def two_blocks(columns: int = 8) -> LayerGraph:
    """Two regions of a stage of two linears and a stage of one, and a head that reads them."""
    nodes: list[Node] = [source("tokens", "B", "L", columns)]
    regions = []
    stream = "tokens"
    for index in range(2):
        at = f"h{index}"
        nodes += [
            linear(f"{at}.gate", stream, 16, columns),
            linear(f"{at}.up", stream, 16, columns, bias=True),
            function(f"{at}.mul", "mul", (f"{at}.gate", f"{at}.up"), "B", "L", 16),
            linear(f"{at}.down", f"{at}.mul", columns, 16),
        ]
        stages = (
            Stage(value=stream, layers=(f"{at}.gate", f"{at}.up")),
            Stage(value=f"{at}.mul", layers=(f"{at}.down",)),
        )
        inside = tuple(node.name for node in nodes[-4:])
        regions.append(Region(name=at, nodes=inside, stages=stages))
        stream = f"{at}.down"
    nodes.append(linear("head", stream, 1000, columns))
    return LayerGraph(structure(nodes, regions))


def annotated(graph: LayerGraph, **notes: Annotation) -> LayerGraph:
    """Annotate nodes; a dot in a node's name is written as ``__``."""
    for name, note in notes.items():
        graph.annotate(name.replace("__", "."), note)
    return graph
