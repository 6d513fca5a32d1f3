from collections.abc import Callable

import pytest

from qdc.codec import Lowered
from qdc.errors import InvalidGraph
from qdc.ir.annotations import (
    Annotation,
    Factor,
    Kept,
    Moment,
    Opaque,
    Orders,
    Packed,
    Salience,
)
from qdc.ir.graph import LayerGraph, Node, Region, Stage
from qdc.ir.types import Parameter
from qdc.ir.verify import verify
from qdc.multibinary import MultiBinary
from tests.support.graphs import (
    annotated,
    function,
    linear,
    ref,
    source,
    structure,
    two_blocks,
    value,
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


class LoweredToy(Lowered):
    tag = "lowered-toy"
    codec: MultiBinary


def problems(graph: LayerGraph, tensors: set[str] | None = None) -> tuple[str, tuple[str, ...]]:
    """What the verifier says, and of which nodes."""
    with pytest.raises(InvalidGraph) as caught:
        verify(graph, tensors)
    return f"{caught.value.what}\n{caught.value.help}", caught.value.where


def test_a_sound_graph_passes() -> None:
    verify(two_blocks())
    verify(two_blocks(), tensors=set())


@pytest.mark.parametrize("name", list(GOOD))
def test_a_sound_annotation_passes(name: str) -> None:
    verify(annotated(two_blocks(), h0__gate=GOOD[name]), tensors={"m", "f", "p"})


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (Orders(blocks=(5, 2), widths=(4, 4)), "order 5 is outside 1..4"),
        (Orders(blocks=(0, 4), widths=(4, 4), budget=2), "order 0 is outside 1..4"),
        (Orders(blocks=(2, 3), widths=(4, 4), budget=2), "2.5 breaks the strict budget of 2"),
        (Orders(blocks=(1, 3), widths=(6, 2), budget=2), "1.5 breaks the strict budget of 2"),
        (Orders(blocks=(2, 2), widths=(4, 2)), "block widths sum to 6, not to 8"),
        (Salience(blocks=(1.0,), widths=(16,)), "block widths sum to 16, not to 8"),
        (Salience(blocks=(1.0,), widths=(4, 4)), "1 blocks for 2 block widths"),
        (Salience(blocks=(1.0, float("nan")), widths=(4, 4)), "negative or not finite"),
        (Salience(blocks=(1.0, float("inf")), widths=(4, 4)), "negative or not finite"),
        (Salience(blocks=(-1.0, 1.0), widths=(4, 4)), "negative or not finite"),
        (
            Moment(tensor=ref("m", 8, 16), samples=1, tokens=1, masked=0),
            r"moment f32[8,16] does not fit 8 input columns",
        ),
        (
            Moment(tensor=ref("m", 8), samples=1, tokens=1, masked=0),
            r"moment f32[8] does not fit 8 input columns",
        ),
        (Factor(tensor=ref("f", 16, 16), damp=0, attempts=1), "factor f32[16,16] does not fit"),
        (
            Factor(tensor=ref("f", 8, 8), damp=0, attempts=1, dead=(8,)),
            "a dead input is outside 0..7",
        ),
        (
            Packed(tensors=(ref("p", 2),), suffixes=("p",), payload_bits=9, weights=64),
            "64 weights packed of 128",
        ),
        (
            Packed(tensors=(ref("p", 2),), suffixes=("p", "q"), payload_bits=9, weights=128),
            "2 names for 1 packed tensors",
        ),
        (
            LoweredToy(codec=MultiBinary(rows=8, columns=8, orders=(2,)), tensors=(), suffixes=()),
            "lowered as 8 x 8, the weight is f16[16,8]",
        ),
        (
            LoweredToy(
                codec=MultiBinary(rows=16, columns=8, orders=(2,)), tensors=(), suffixes=("a",)
            ),
            "1 names for 0 working tensors",
        ),
    ],
    ids=lambda found: found if isinstance(found, str) else "",
)
def test_a_broken_annotation_is_refused(note: Annotation, text: str) -> None:
    said, where = problems(annotated(two_blocks(), h0__gate=note))
    assert text in said
    assert f"@{note.tag}" in said
    assert where == ("%h0.gate",)


@pytest.mark.parametrize("name", [n for n in GOOD if n not in ("kept", "opaque")])
def test_an_annotation_on_a_function_is_refused(name: str) -> None:
    said, where = problems(annotated(two_blocks(), h0__mul=GOOD[name]))
    assert "is on a mul, not on a linear" in said
    assert where == ("%h0.mul",)


def test_kept_and_unknown_annotations_may_be_anywhere() -> None:
    verify(annotated(two_blocks(), h0__mul=GOOD["kept"], tokens=GOOD["opaque"]))


def test_a_reference_to_no_tensor_is_refused() -> None:
    graph = annotated(two_blocks(), h0__gate=GOOD["moment"], h1__up=GOOD["factor"])
    verify(graph)
    verify(graph, tensors={"m", "f"})
    said, where = problems(graph, tensors={"f"})
    assert "@moment names tensor m, which does not exist" in said
    assert where == ("%h0.gate",)


def test_all_that_is_broken_is_in_one_error() -> None:
    graph = annotated(
        two_blocks(),
        h0__gate=Orders(blocks=(9, 2), widths=(4, 4)),
        h0__mul=GOOD["orders"],
        h1__down=Moment(tensor=ref("m", 8, 8), samples=1, tokens=1, masked=0),
    )
    with pytest.raises(InvalidGraph) as caught:
        verify(graph, after="abmp-allocate{ratio=0.1}")
    assert caught.value.where == ("%h0.gate", "%h0.mul", "%h1.down")
    text = str(caught.value)
    assert "abmp-allocate{ratio=0.1} left an invalid graph" in text
    assert "and 2 more" in text
    for part in ("order 9 is outside 1..4", "not on a linear", "does not fit 16 input columns"):
        assert part in text


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
