"""abmp-allocate: what moves, what is shared, what is refused."""

from collections.abc import Mapping

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdc.errors import MissingAnnotation, OrderOutOfRange
from qdc.ir.annotations import Orders, Salience
from qdc.ir.verify import verify
from qdc.numerics.blocks import block_widths
from qdc.passes.abmp_allocate import AbmpAllocate
from qdc.streaming.unit import Unit
from tests.support.units import make_unit

Scores = tuple[float, ...]


def salient(step: AbmpAllocate, columns: int, scores: Mapping[str, Scores]) -> Unit:
    """Layers of four rows whose blocks have these scores."""
    unit = make_unit(step, {name: torch.zeros(4, columns) for name in scores})
    for node in unit.layers():
        note = Salience(blocks=scores[node.name], widths=block_widths(columns))
        unit.annotate(node, note)
    return unit


def orders(unit: Unit) -> dict[str, tuple[int, ...]]:
    step = unit.step
    step.check(unit.graph)
    step.run(unit)
    verify(unit.graph, unit.tensors, after=step.name)
    return {node.name: unit.graph.require(node.name, Orders).blocks for node in unit.layers()}


def test_layers_of_a_stage_share_the_decision_by_default() -> None:
    scores = {"q": (9.0, 1.0, 5.0, 5.0), "k": (1.0, 8.0, 5.0, 6.0)}
    shared = orders(salient(AbmpAllocate(ratio=0.25), 512, scores))
    # sums 10, 9, 10, 11: the second goes down, the last goes up
    assert shared == {"q": (2, 1, 2, 3), "k": (2, 1, 2, 3)}


def test_layers_of_a_stage_decide_alone_on_demand() -> None:
    scores = {"q": (9.0, 1.0, 5.0, 5.0), "k": (1.0, 8.0, 5.0, 6.0)}
    alone = orders(salient(AbmpAllocate(ratio=0.25, scope="layer"), 512, scores))
    assert alone == {"q": (3, 1, 2, 2), "k": (1, 3, 2, 2)}


@pytest.mark.parametrize("scope", ["stage", "layer"])
@given(data=st.data())
def test_the_mean_stays_exact(scope: str, data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 9 * 128))
    ratio = data.draw(st.floats(0, 0.5))
    base = data.draw(st.sampled_from([2, 3]))
    count = len(block_widths(columns))
    blocks = st.tuples(*[st.floats(0, 1e6)] * count)
    scores = {name: data.draw(blocks) for name in ("q", "k")}
    step = AbmpAllocate.model_validate({"ratio": ratio, "base": base, "scope": scope})
    unit = salient(step, columns, scores)
    found = orders(unit)
    widths = block_widths(columns)
    for name, blocks_of_layer in found.items():
        weighted = sum(o * w for o, w in zip(blocks_of_layer, widths, strict=True))
        assert weighted == base * columns
        assert unit.graph.require(name, Orders).budget == base
        if columns % 128:
            assert blocks_of_layer[-1] == base
    if scope == "stage":
        assert found["q"] == found["k"]


@pytest.mark.parametrize(
    ("base", "ratio"), [(1, 0.0), (2, 0.0), (3, 0.0), (4, 0.0), (2, 0.5), (3, 0.5)]
)
def test_bases_whose_neighbours_exist_are_fine(base: int, ratio: float) -> None:
    scores = {"q": (1.0, 2.0, 3.0, 4.0)}
    found = orders(salient(AbmpAllocate(base=base, ratio=ratio), 512, scores))
    move = 1 if ratio else 0
    assert found["q"] == (base - move, base - move, base + move, base + move)


@pytest.mark.parametrize(
    ("base", "ratio", "needs"),
    [(4, 0.1, "3..5"), (1, 0.1, "0..2"), (5, 0.0, "5..5"), (0, 0.0, "0..0"), (-3, 0.0, "-3..-3")],
)
def test_orders_out_of_range_name_every_layer(base: int, ratio: float, needs: str) -> None:
    unit = salient(AbmpAllocate(base=base, ratio=ratio), 128, {"q": (1.0,), "k": (1.0,)})
    with pytest.raises(OrderOutOfRange) as caught:
        unit.step.check(unit.graph)
    assert f"base {base} with ratio {ratio:g} needs orders {needs}" in caught.value.what
    assert caught.value.where == ("%q", "%k")


def test_too_few_blocks_are_remarked() -> None:
    unit = salient(AbmpAllocate(ratio=0.1), 256, {"q": (1.0, 2.0)})
    assert orders(unit) == {"q": (2, 2)}
    (remark,) = unit.remarks
    assert str(remark) == "missed abmp-allocate %q reason=too few blocks blocks=2"


def test_salience_is_needed() -> None:
    unit = make_unit(AbmpAllocate(), {"q": torch.zeros(4, 128)})
    with pytest.raises(MissingAnnotation, match="the layer has no @salience"):
        unit.step.run(unit)
