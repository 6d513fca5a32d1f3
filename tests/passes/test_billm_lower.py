"""billm-lower: against the published steps by hand, its limits, what our loop gains."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from qdc.errors import InvalidCheckpoint
from qdc.passes.billm_lower import Billm, BillmLower
from tests.support.partitions import (
    Array,
    agree,
    block_loop,
    cost,
    lowered,
    parts_by_hand,
    residual_by_hand,
    upper_of,
)
from tests.support.units import correlated_moment, noise

PUBLISHED: dict[str, Any] = {"compensation": "diag", "feedback": False}
SHARED: dict[str, Any] = {"search": "weights", "percentiles": "masked", "reassign": True}
COLUMNS = 160


@pytest.mark.parametrize("search", ["salience", "weights"])
@pytest.mark.parametrize("percentiles", ["zeroed", "masked"])
def test_is_the_published_method(search: str, percentiles: str) -> None:
    weight, moment = noise(10, COLUMNS), correlated_moment(COLUMNS)
    options = {"search": search, "percentiles": percentiles, "salient": 9, "splits": 17}
    unit, found = lowered(BillmLower, weight, moment, **PUBLISHED, **options)

    def quantize(block: Array, diagonal: Array) -> Array:
        salience = (block / diagonal) ** 2
        fitted = salience if search == "salience" else block
        zeroed = percentiles == "zeroed"
        salient, large = parts_by_hand(salience, fitted, 9, 17, residual_by_hand, zeroed=zeroed)
        twice = np.broadcast_to(salient, block.shape)
        return (
            residual_by_hand(block, twice, 2)
            + residual_by_hand(block, large, 1)
            + residual_by_hand(block, ~twice & ~large, 1)
        )

    assert agree(found, block_loop(weight, upper_of(unit), quantize))


def test_without_parts_it_is_binarisation_about_the_mean() -> None:
    weight, moment = noise(8, 96) + 0.02, correlated_moment(96)
    unit, found = lowered(BillmLower, weight, moment, **PUBLISHED, salient=0, splits=0)
    mean = weight.mean(1, keepdim=True)
    scale = (weight - mean).abs().mean(1, keepdim=True)
    expected = mean + scale * torch.where(weight >= mean, 1.0, -1.0)
    torch.testing.assert_close(found, expected, rtol=2e-3, atol=1e-5)
    note = unit.graph.require("q", Billm)
    assert (note.salient, note.sparse) == (0, 0)


def test_errors_on_gaussian_weights() -> None:
    """One order is .359 to .363; classes by magnitude and salient columns roughly halve it."""
    weight, moment = noise(256, 256), torch.eye(256)
    found = {}
    for name, options in (
        ("one order", {"salient": 0, "splits": 0}),
        ("salience", {}),
        ("weights", {"search": "weights", "percentiles": "masked"}),
    ):
        _, dense = lowered(BillmLower, weight, moment, **PUBLISHED, **options)
        found[name] = float((weight - dense).square().sum() / weight.square().sum())
    assert found["one order"] == pytest.approx(0.359, rel=0.03)
    assert found["weights"] < found["salience"] < 0.65 * found["one order"]
    assert found["weights"] > 0.110  # two whole orders are better, with fewer bits


@pytest.mark.parametrize("seed", range(2))
def test_our_loop_is_never_worse(seed: int) -> None:
    weight, moment = noise(12, COLUMNS, seed), correlated_moment(COLUMNS, seed)
    costs = []
    for options in (
        PUBLISHED,
        {"feedback": False},
        {"rounds": 0, "sweeps": 0},
        {},
        SHARED,
    ):
        unit, dense = lowered(BillmLower, weight, moment, **options)
        costs.append(cost(unit, weight, dense))
    assert costs == sorted(costs, reverse=True)
    assert costs[-1] < 0.5 * costs[0]


@pytest.mark.parametrize("shape", [(1, 32), (3, 1), (2, 576)])
def test_odd_shapes(shape: tuple[int, int]) -> None:
    weight = noise(*shape)
    for options in (PUBLISHED, SHARED):
        _, dense = lowered(BillmLower, weight, correlated_moment(shape[1]), **options)
        assert (weight - dense).norm() < 0.7 * weight.norm()


def test_zeros_stay_zero_and_dead_inputs_do_no_harm() -> None:
    weight, moment = noise(4, 64), correlated_moment(64)
    weight[1] = 0
    moment[3] = 0
    moment[:, 3] = 0
    for options in (PUBLISHED, SHARED):
        _, dense = lowered(BillmLower, weight, moment, **options)
        assert not dense[1].any()
        assert dense.isfinite().all()
        zeros = torch.zeros(4, 64)
        assert not lowered(BillmLower, zeros, moment, **options)[1].any()


def test_weights_beyond_fp16_are_refused_by_name() -> None:
    with pytest.raises(InvalidCheckpoint, match="not finite in fp16") as caught:
        lowered(BillmLower, 1e7 * noise(4, 64), correlated_moment(64))
    assert caught.value.where == ("%q",)


@pytest.mark.parametrize(
    "options",
    [
        {"metric": "magnitude", "search": "weights"},
        {"splits": 0, "percentiles": "masked"},
        {"salient": 0, "percentiles": "masked"},
        {"salient": 0, "splits": 0, "search": "weights"},
        {"feedback": False, "reassign": True},
        {"splits": 0, "reassign": True},
        {"feedback": False, "sweeps": 3},
        {"salient": -1},
    ],
)
def test_options_that_would_be_ignored_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        BillmLower.model_validate(options)
