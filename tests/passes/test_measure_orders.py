"""measure-orders: the costs are those of the definition, dead inputs cost nothing."""

import pytest
import torch
from pydantic import ValidationError

from qdc.ir.annotations import Factor, Salience
from qdc.ir.costs import Costs
from qdc.ir.verify import verify
from qdc.numerics.columns import block_cost, block_metric
from qdc.numerics.components import dense
from qdc.numerics.factor import factorize
from qdc.numerics.multibinary import fit
from qdc.passes.measure_orders import MeasureOrders
from qdc.streaming.unit import Unit
from tests.support.units import correlated_moment, make_unit, noise

COLUMNS = 160


def measure(step: MeasureOrders, dead: tuple[int, ...] = ()) -> tuple[Unit, Costs]:
    moment = correlated_moment(COLUMNS)
    for index in dead:
        moment[index] = moment[:, index] = 0
    unit = make_unit(step, {"q": noise(12, COLUMNS)})
    factor = factorize(moment)
    (node,) = unit.layers()
    ref = unit.put("x:factor", factor.upper)
    unit.annotate(node, Factor(tensor=ref, damp=0.01, attempts=1, dead=dead))
    unit.annotate(node, Salience(blocks=(1.0, 1.0), widths=(128, 32)))
    step.run(unit)
    verify(unit.graph, unit.tensors, after=step.name)
    return unit, unit.graph.require("q", Costs)


def test_the_first_block_costs_what_its_fits_cost() -> None:
    unit, note = measure(MeasureOrders(how="fit", tolerance=1e-6))
    block = unit.weight(next(unit.graph.layers()))[:, :128].contiguous()
    upper = unit.get(unit.graph.require("q", Factor).tensor)
    metric = block_metric(upper[:128, :128])
    for order, cost in enumerate(note.blocks[0], 1):
        fitted, _ = fit(block, order, torch.ones_like(block))
        assert cost == pytest.approx(block_cost(block, dense(fitted), metric), rel=1e-4)
    assert note.widths == (128, 32)
    assert note.orders == 4


@pytest.mark.parametrize("how", ["fit", "feedback"])
def test_costs_fall_with_the_order(how: str) -> None:
    _, note = measure(MeasureOrders.model_validate({"how": how}))
    for row in note.blocks:
        assert note.energy > row[0] > row[1] > row[2] > row[3] > 0


def test_the_second_block_depends_on_the_base() -> None:
    one, two = (measure(MeasureOrders(base=base))[1] for base in (1, 2))
    assert one.blocks[0] == two.blocks[0]
    assert one.blocks[1] != two.blocks[1]


def test_a_block_of_dead_inputs_costs_nothing() -> None:
    _, note = measure(MeasureOrders(), dead=tuple(range(128, COLUMNS)))
    assert note.blocks[1] == (0, 0, 0, 0)
    assert note.blocks[0][0] > 0


def test_fewer_orders_and_8_bit_scales_on_demand() -> None:
    _, note = measure(MeasureOrders(highest=3, scale_bits=8))
    _, usual = measure(MeasureOrders(highest=3))
    assert (note.orders, note.scale_bits) == (3, 8)
    assert note.blocks[0] != usual.blocks[0]


def test_the_base_is_measured() -> None:
    with pytest.raises(ValidationError, match="base 3 is above the highest order 2"):
        MeasureOrders(base=3, highest=2)
