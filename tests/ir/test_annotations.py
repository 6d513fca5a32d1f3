import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qdc.format.multibinary import MultiBinary
from qdc.format.uniformgrid import UniformGrid
from qdc.ir.annotations import BUILT_IN, Factor, Kept, Moment, Orders, Packed, Salience, runs
from qdc.ir.opaque import Opaque
from qdc.passes.daq_lower import Daq
from qdc.passes.rtn_lower import Rtn
from tests.support.graphs import ref


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((2,), "2"),
        ((2, 1, 3, 2), "2 1 3 2"),
        ((1, 2, 3, 4, 1, 2, 3, 4), "1 2 3 4 1 2 3 4"),
        ((2,) * 9, "2x9"),
        ((2,) * 3 + (3,) + (2,) * 13 + (1, 3), "2x16, 1 at 17, 3 at 3 18"),
    ],
    ids=str,
)
def test_text_of_runs(values: tuple[int, ...], text: str) -> None:
    assert runs(values) == text


@given(st.lists(st.integers(1, 4), min_size=9, max_size=200))
def test_a_long_run_still_says_everything(values: list[int]) -> None:
    common, *exceptions = runs(tuple(values)).split(", ")
    value, count = map(int, common.split("x"))
    rebuilt = [value] * len(values)
    for exception in exceptions:
        other, places = exception.split(" at ")
        for place in places.split():
            rebuilt[int(place)] = int(other)
    assert rebuilt == values
    assert count == values.count(value)


def test_texts() -> None:
    square = ref("m", 8, 8)
    notes = [
        Kept(reason="outside the repeated blocks"),
        Moment(tensor=square, samples=128, tokens=32_768, masked=0.384),
        Factor(tensor=square, damp=0.01, attempts=1),
        Factor(tensor=square, damp=0.1, attempts=3, dead=(1, 5)),
        Salience(blocks=(1100.0, 9400.0), widths=(128, 128)),
        Salience(blocks=(1.0, 0.5), widths=(128, 32)),
        Orders(blocks=(2, 1, 3, 2), widths=(4, 4, 4, 4)),
        Orders(blocks=(2, 1), widths=(4, 2)),
        Packed(
            tensors=(ref("p", 16, 4, dtype="u8"), ref("s", 16, 2, dtype="f16")),
            suffixes=("planes", "row_scale"),
            payload_bits=256,
            weights=128,
        ),
        Opaque(unknown_tag="future", data={"a": 1, "b": 2}),
    ]
    assert [note.text() for note in notes] == [
        "outside the repeated blocks",
        "f32[8,8]   128 samples, 32,768 tokens, 38% masked",
        "f32[8,8]   damp 0.01",
        "f32[8,8]   damp 0.1   3 attempts   2 dead inputs",
        "2 blocks of 128   1.1e+03 .. 9.4e+03",
        "2 blocks of 128 and 32   5.0e-01 .. 1.0e+00",
        "2 1 3 2   mean 2",
        "2 1   mean 1.667",
        "128 B   2 code bits/weight   8 in all",
        "unknown tag, 2 fields kept",
    ]


def test_packed_bits_are_signs_where_the_codec_has_signs() -> None:
    packed = Packed(tensors=(ref("p", 4),), suffixes=("p",), payload_bits=256, weights=128)
    orders = Orders(blocks=(2,), widths=(8,))
    signs = Daq(codec=MultiBinary(rows=16, columns=8, block=8, orders=(2,)), outliers=0, sweeps=1)
    codes = Rtn(codec=UniformGrid(rows=16, columns=8, group=8, bits=2))
    said = {
        "nothing": packed.words((packed,)),
        "orders": packed.words((orders, packed)),
        "signs": packed.words((signs, packed)),
        "codes": packed.words((codes, packed)),
        "codes in spite of orders": packed.words((orders, codes, packed)),
    }
    assert {case: text.split()[3] for case, text in said.items()} == {
        "nothing": "code",
        "orders": "sign",
        "signs": "sign",
        "codes": "code",
        "codes in spite of orders": "code",
    }


def test_every_built_in_has_its_own_tag() -> None:
    tags = [kind.tag for kind in BUILT_IN]
    assert len(set(tags)) == len(tags)
    assert Opaque not in BUILT_IN


def test_refs_are_found_in_fields_and_tuples() -> None:
    one, two = ref("one", 8, 8), ref("two", 4)
    assert list(Moment(tensor=one, samples=1, tokens=1, masked=0).refs()) == [one]
    packed = Packed(tensors=(one, two), suffixes=("a", "b"), payload_bits=1, weights=1)
    assert list(packed.refs()) == [one, two]
    assert list(Kept(reason="none").refs()) == []


@pytest.mark.parametrize("widths", [(0, 8), (-1, 1), (), (4, 4, 4)], ids=str)
def test_orders_need_a_width_each(widths: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        Orders(blocks=(2, 1), widths=widths, budget=2)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1.0])
def test_shares_are_numbers(number: float) -> None:
    square = ref("m", 8, 8)
    with pytest.raises(ValidationError):
        Factor(tensor=square, damp=number, attempts=1)
    with pytest.raises(ValidationError):
        Moment(tensor=square, samples=1, tokens=1, masked=number)


@pytest.mark.parametrize(
    "data", [{"a": object()}, {"a": [{1: 2}]}, {"a": (1, 2)}], ids=["object", "key", "tuple"]
)
def test_an_unknown_annotation_holds_plain_data(data: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Opaque(unknown_tag="new", data=data)


def test_an_unknown_annotation_can_always_be_shown_as_json() -> None:
    note = Opaque(unknown_tag="new", data={"bytes": b"\xff\x00", "deep": [[{"x": None}]]})
    assert note.model_dump(mode="json")["data"] == {"bytes": "ff00", "deep": [[{"x": None}]]}
