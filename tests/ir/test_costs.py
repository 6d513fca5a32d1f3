"""@costs, @loss, and what @orders promises beyond one layer: exact, checked, stored."""

from fractions import Fraction

import pytest
from pydantic import ValidationError

from qdc.errors import InvalidGraph
from qdc.ir.annotations import Orders, Packed
from qdc.ir.costs import Costs, LossSensitivity
from qdc.ir.dump import from_bytes, to_bytes
from qdc.ir.printer import as_data
from qdc.ir.verify import verify
from tests.ir.verdicts import problems
from tests.support.graphs import annotated, ref, two_blocks

ROW = (4.0, 1.0, 0.25)
TAGS = {kind.tag: kind for kind in (Orders, Packed, Costs, LossSensitivity)}


@pytest.mark.parametrize("budget", [2, Fraction(7, 4), Fraction(5, 2)])
def test_a_budget_survives_a_dump_exactly(budget: Fraction) -> None:
    blocks = {2: (2, 2), Fraction(7, 4): (2, 1), Fraction(5, 2): (2, 3)}[budget]
    widths = (6, 2) if budget == Fraction(7, 4) else (4, 4)
    graph = annotated(two_blocks(), h0__up=Orders(blocks=blocks, widths=widths, budget=budget))
    again = from_bytes(to_bytes(graph), TAGS)
    assert again.require("h0.up", Orders).budget == budget
    stored = as_data(graph, only="h0.up")["nodes"][0]["annotations"]["orders"]  # type: ignore[index]
    assert stored["budget"] == (2 if budget == 2 else str(budget))
    assert set(stored) == {"blocks", "widths", "budget"}


@pytest.mark.parametrize("budget", ["7/0", "-1/2", "1e9", "2/1/1", -1, 1.75, True, "9" * 40, "½"])
def test_a_budget_is_a_ratio_of_whole_numbers(budget: object) -> None:
    with pytest.raises(ValidationError, match="7/4"):
        Orders.model_validate({"blocks": [2], "widths": [8], "budget": budget})


def test_a_mean_over_the_model_is_checked_over_the_model() -> None:
    def orders(*blocks: int) -> Orders:
        return Orders(blocks=blocks, widths=(4, 4), budget=2, scope="model")

    verify(annotated(two_blocks(), h0__up=orders(1, 2), h1__up=orders(3, 2)))
    with pytest.raises(InvalidGraph, match=r"mean order 2\.25 over 2 layers breaks"):
        verify(annotated(two_blocks(), h0__up=orders(2, 2), h1__up=orders(3, 2)))
    kept = from_bytes(to_bytes(annotated(two_blocks(), h0__up=orders(2, 2))), TAGS)
    assert kept.require("h0.up", Orders).scope == "model"


def test_a_layer_takes_no_more_bytes_than_were_allocated() -> None:
    packed = Packed(tensors=(ref("p", 8, 4),), suffixes=("x",), payload_bits=1, weights=128)
    for allowed in (128, 129, None):
        note = Orders(blocks=(2, 2), widths=(4, 4), stored_bytes=allowed)
        graph = annotated(two_blocks(), h0__gate=note)
        graph.annotate("h0.gate", packed)
        verify(graph)
    note = Orders(blocks=(2, 2), widths=(4, 4), stored_bytes=127)
    graph = annotated(two_blocks(), h0__gate=note)
    verify(graph)
    graph.annotate("h0.gate", packed)
    text, where = problems(graph)
    assert "stores 128 bytes, its allocation counts on 127" in text
    assert where == ("%h0.gate",)


@pytest.mark.parametrize(
    ("note", "text"),
    [
        (Costs(blocks=(ROW,), widths=(4, 4), energy=1), "1 blocks for 2 block widths"),
        (Costs(blocks=(ROW, ROW), widths=(4, 2), energy=1), "sum to 6, not to 8"),
        (Costs(blocks=(ROW, (1.0, 1.0, -1.0)), widths=(4, 4), energy=1), "negative"),
        (Costs(blocks=((float("nan"),),), widths=(8,), energy=1), "not finite"),
    ],
    ids=str,
)
def test_a_broken_annotation_is_named(note: Costs, text: str) -> None:
    assert text in problems(annotated(two_blocks(), h0__gate=note))[0]


@pytest.mark.parametrize("blocks", [((),), ((1.0, 1.0), (1.0,)), ((1.0,) * 5,), ()], ids=str)
def test_costs_are_one_for_each_order(blocks: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValidationError):
        Costs(blocks=blocks, widths=(4,) * max(1, len(blocks)), energy=1)


def test_texts() -> None:
    costs = Costs(blocks=(ROW, ROW), widths=(4, 4), energy=16)
    assert costs.text() == "2 blocks   share of the output at orders 1..: 0.5 0.12 0.031"
    loss = LossSensitivity(rise=0.003, error=1.5, positions=1631)
    assert loss.text() == "0.003 nats at 1,631 positions   0.002 for a unit of output error"
    assert LossSensitivity(rise=0, error=0, positions=1).weight == 0
