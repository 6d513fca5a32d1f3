from collections.abc import Callable

import pytest

from qdc.ir.annotation import Annotation
from qdc.ir.graph import LayerGraph, Node, Region, Stage
from qdc.ir.types import Parameter
from tests.ir.verdicts import GOOD, problems
from tests.support.graphs import (
    function,
    linear,
    source,
    structure,
    two_blocks,
    value,
)


def rebuilt(change: Callable[[list[Node]], None]) -> LayerGraph:
    """Two blocks, without regions, whose nodes ``change`` has edited."""
    nodes = list(two_blocks())
    change(nodes)
    return LayerGraph(structure(nodes))


def test_a_node_before_its_input_is_refused() -> None:
    said, where = problems(rebuilt(lambda nodes: nodes.insert(1, nodes.pop(4))))
    assert "reads %h0.mul, which does not come before it" in said
    assert where == ("%h0.down",)


def test_a_cycle_is_refused() -> None:
    one = function("one", "neg", ("two",), 4)
    two = function("two", "neg", ("one",), 4)
    said, where = problems(LayerGraph(structure([one, two])))
    assert "reads %two, which does not come before it" in said
    assert where == ("%one",)


def test_a_node_that_reads_itself_is_refused() -> None:
    said, where = problems(LayerGraph(structure([function("self", "neg", ("self",), 4)])))
    assert "reads %self" in said
    assert where == ("%self",)


GATE = two_blocks()["h0.gate"]
WEIGHT, BIAS = two_blocks()["h0.up"].parameters


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"type": value("B", "L", 17)}, "gives f32[B,L,17], its weight has 16 rows"),
        ({"type": value("L", "B", 16)}, "gives f32[L,B,16]"),
        ({"inputs": ("narrow",)}, "reads f32[B,L,4], its weight has 8 columns"),
        ({"inputs": ("scalar",)}, "reads f32[], its weight has 8 columns"),
        ({"inputs": ()}, "a linear has one input and one two-dimensional weight"),
        ({"inputs": ("tokens", "narrow")}, "a linear has one input"),
        ({"parameters": ()}, "one two-dimensional weight"),
        ({"parameters": (WEIGHT, WEIGHT)}, "one two-dimensional weight"),
        ({"parameters": (BIAS,)}, "one two-dimensional weight"),
        (
            {"parameters": (Parameter(name="w", dtype="f16", shape=(8,)),)},
            "one two-dimensional weight",
        ),
        (
            {
                "parameters": (
                    WEIGHT,
                    Parameter(name="b", role="bias", dtype="f16", shape=(8,)),
                )
            },
            "its bias is f16[8]",
        ),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
@pytest.mark.parametrize("note", [None, GOOD["moment"], GOOD["packed"]], ids=["bare", "m", "p"])
def test_a_misshapen_linear_is_refused(
    changed: dict[str, object], text: str, note: Annotation | None
) -> None:
    nodes = [
        source("tokens", "B", "L", 8),
        source("narrow", "B", "L", 4),
        source("scalar"),
        GATE.model_copy(update=changed),
    ]
    graph = LayerGraph(structure(nodes))
    if note is not None:
        graph.annotate("h0.gate", note)
    said, where = problems(graph)
    assert text in said
    assert where == ("%h0.gate",)


Edit = Callable[[list[Region]], None]


def broken_regions(edit: Edit) -> tuple[str, tuple[str, ...]]:
    """What the verifier says of two blocks whose regions were edited."""
    graph = two_blocks()
    regions = list(graph.regions)
    edit(regions)
    return problems(LayerGraph(structure(graph, regions)))


def edited(region: Region, **fields: object) -> Region:
    return region.model_copy(update=fields)


@pytest.mark.parametrize(
    ("edit", "text", "guilty"),
    [
        (lambda r: r.reverse(), "region h0 starts before the one ahead of it ends", "%h0.gate"),
        (
            lambda r: r.__setitem__(1, edited(r[1], name="h0")),
            "more than one region is called h0",
            "%h0.gate",
        ),
        (
            lambda r: r.append(edited(r[1], name="again")),
            "region again starts before the one ahead of it ends",
            "%h1.gate",
        ),
        (
            lambda r: r.__setitem__(0, edited(r[0], nodes=(*r[0].nodes, "ghost"))),
            "region h0 holds a node that is not there",
            "%ghost",
        ),
        (
            lambda r: r.__setitem__(0, edited(r[0], nodes=r[0].nodes[::-1])),
            "region h0 is not one piece of the execution order",
            "%h0.down",
        ),
        (
            lambda r: r.__setitem__(0, edited(r[0], nodes=(*r[0].nodes, "head"))),
            "region h0 is not one piece of the execution order",
            "%h0.gate",
        ),
        (
            lambda r: r.__setitem__(1, edited(r[1], stages=r[0].stages)),
            "a stage of region h1 holds no linear of it",
            "%h0.gate",
        ),
        (
            lambda r: r.__setitem__(
                0,
                edited(r[0], stages=(*r[0].stages, Stage(value="h0.down", layers=("h0.mul",)))),
            ),
            "a stage of region h0 holds no linear of it",
            "%h0.mul",
        ),
        (
            lambda r: r.__setitem__(
                0,
                edited(
                    r[0],
                    stages=(Stage(value="tokens", layers=("h0.gate", "h0.up", "h0.down")),),
                ),
            ),
            "does not read %tokens, the value of its stage",
            "%h0.down",
        ),
        (
            lambda r: r.__setitem__(0, edited(r[0], stages=r[0].stages[:1])),
            "0 stages of region h0 hold it",
            "%h0.down",
        ),
        (
            lambda r: r.__setitem__(0, edited(r[0], stages=(*r[0].stages, r[0].stages[1]))),
            "2 stages of region h0 hold it",
            "%h0.down",
        ),
        (
            lambda r: r.__setitem__(
                0,
                edited(
                    r[0],
                    stages=(
                        Stage(value="tokens", layers=("h0.gate",)),
                        Stage(value="tokens", layers=("h0.up",)),
                        r[0].stages[1],
                    ),
                ),
            ),
            "two stages of region h0 read %tokens",
            "%h0.gate",
        ),
        (
            lambda r: r.__setitem__(0, edited(r[0], stages=r[0].stages[::-1])),
            "the stages of region h0 are not in execution order",
            "%h0.gate",
        ),
    ],
)
def test_broken_regions_are_refused(edit: Edit, text: str, guilty: str) -> None:
    said, where = broken_regions(edit)
    assert text in said
    assert guilty in where


def test_a_linear_with_several_faults_is_named_once() -> None:
    nodes = [source("x", "B", "L", 8), linear("a", "x", 4, 6).model_copy(update={"type": value(1)})]
    said, where = problems(LayerGraph(structure(nodes)))
    assert "6 columns" in said
    assert "4 rows" in said
    assert where == ("%a",)


@pytest.mark.parametrize(
    "parameters",
    [
        (),
        (WEIGHT.model_copy(update={"shape": (16,)}),),
        (WEIGHT.model_copy(update={"shape": (16, 4)}),),
        (WEIGHT, WEIGHT),
    ],
)
def test_an_embedding_has_one_table_of_its_width(parameters: tuple[Parameter, ...]) -> None:
    node = function("wte", "embedding", ("tokens",), "B", "L", 8)
    wte = node.model_copy(update={"parameters": parameters})
    graph = LayerGraph(structure([source("tokens", "B", "L"), wte]))
    graph.annotate("wte", GOOD["packed"])
    said, where = problems(graph)
    assert "an embedding has one two-dimensional weight" in said
    assert where == ("%wte",)
