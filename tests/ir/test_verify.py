import pytest

from qdc.errors import InvalidGraph
from qdc.format.multibinary import MultiBinary
from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Factor, Moment, Orders, Packed, Salience
from qdc.ir.verify import verify
from tests.ir.dumps import LoweredToy
from tests.ir.verdicts import GOOD, problems
from tests.support.graphs import (
    annotated,
    ref,
    two_blocks,
)


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
