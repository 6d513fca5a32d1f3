"""Costs by order: what they add up to, and that the walk is that of the base order."""

import pytest

from qdc.numerics.blocks import block_slices
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import residual_cost
from qdc.numerics.order_costs import fitter, order_costs
from tests.support.units import correlated_moment, noise

SLICES = block_slices(80, 32)


@pytest.mark.parametrize("feedback", [False, True])
@pytest.mark.parametrize("base", [1, 2, 3])
def test_costs_at_the_base_add_up_to_the_error_of_the_walk(base: int, feedback: bool) -> None:
    weight, upper = noise(24, 80), factorize(correlated_moment(80)).upper
    quantize = fitter(15, 1e-4, 16, feedback=feedback, rounds=1, code_sweeps=0)
    found = order_costs(weight, upper, SLICES, (1, 2, 3), base, quantize)
    total = sum(row[base - 1] for row in found.blocks)
    assert total == pytest.approx(residual_cost(weight, found.dense, upper), rel=1e-3)
    for row in found.blocks:
        assert row[0] > row[1] > row[2] > 0


def test_feedback_costs_less() -> None:
    weight, upper = noise(24, 80), factorize(correlated_moment(80)).upper
    plain, seeing = (
        order_costs(
            weight, upper, SLICES, (2,), 2,
            fitter(15, 1e-4, 16, feedback=feedback, rounds=1, code_sweeps=0),
        )
        for feedback in (False, True)
    )  # fmt: skip
    assert sum(row[0] for row in seeing.blocks) < sum(row[0] for row in plain.blocks)
