"""Grids with integer zero points and short scales: levels, the first fit, refits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.integergrid import IntegerGrid, Zeros, shortened, zero_codes
from qdc.numerics.uniform import dense_uniform
from tests.support.units import correlated_moment, noise


def levels(grid: IntegerGrid) -> Tensor:
    """f32[n, 2^bits]."""
    return grid.scale[:, None] * (torch.arange(2**grid.bits) - grid.zero[:, None])


def fitted(bits: int, zeros: Zeros, seed: int, columns: int = 24) -> tuple[Tensor, IntegerGrid]:
    block = noise(5, columns, seed)
    return block, IntegerGrid.fit(block, bits, torch.ones(columns), zeros, "bf16")


@settings(max_examples=12)
@given(st.sampled_from([2, 4]), st.sampled_from(["central", "any"]), st.integers(0, 30))
def test_every_number_takes_the_level_nearest_to_it(bits: int, zeros: Zeros, seed: int) -> None:
    block, grid = fitted(bits, zeros, seed)
    written = grid.round(block)
    distance = (block[:, :, None] - levels(grid)[:, None, :]).abs()
    torch.testing.assert_close((block - written).abs(), distance.amin(-1), rtol=0, atol=1e-6)
    assert torch.equal(grid.nearest(3, block[:, 3]), written[:, 3])
    encoded = grid.encode(written)
    assert torch.equal(dense_uniform(encoded), written)
    assert torch.equal(levels(grid).gather(1, encoded.codes.long()), written)
    assert set(grid.zero.tolist()) <= set(zero_codes(bits, zeros))
    assert torch.equal(grid.scale.bfloat16().half().float(), grid.scale)


def test_central_zero_points_are_the_two_in_the_middle() -> None:
    assert list(zero_codes(2, "central")) == [1, 2]
    assert list(zero_codes(4, "central")) == [7, 8]
    assert list(zero_codes(2, "any")) == [0, 1, 2, 3]


@settings(max_examples=12)
@given(st.sampled_from([2, 4]), st.sampled_from(["central", "any"]), st.integers(0, 30))
def test_a_refit_raises_the_cost_of_no_row(bits: int, zeros: Zeros, seed: int) -> None:
    block, first = fitted(bits, zeros, seed, 16)
    metric, dense = correlated_moment(16, seed), first.round(block)
    grid, refitted = first.refit(block, dense, metric)
    before, after = (((e @ metric) * e).sum(1) for e in (block - dense, block - refitted))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    assert torch.equal(dense_uniform(grid.encode(refitted)), refitted)
    assert set(grid.zero.tolist()) <= set(zero_codes(bits, zeros))


def test_more_choices_cost_no_more_and_weights_are_heard() -> None:
    block, weights = noise(6, 32, 3) + 0.3, 1 + 9 * torch.rand(32)
    found = {
        zeros: ((IntegerGrid.fit(block, 2, weights, zeros).round(block) - block).square() @ weights)
        for zeros in ("central", "any")
    }
    assert (found["any"] <= found["central"] * (1 + 1e-6)).all()
    plain = IntegerGrid.fit(block, 2, torch.ones(32)).round(block) - block
    assert found["any"].sum() < (plain.square() @ weights).sum()


def test_constant_rows_and_scales_beyond_fp16() -> None:
    block = torch.zeros(2, 8)
    grid = IntegerGrid.fit(block, 2, torch.ones(8))
    assert torch.equal(grid.round(block), block)
    assert torch.equal(dense_uniform(grid.encode(block)), block)
    with pytest.raises(OverflowError, match="fp16"):
        IntegerGrid.fit(torch.full((1, 8), 1e6), 2, torch.ones(8))


@given(st.floats(0, 6e4, width=32))
def test_short_scales_are_numbers_of_both_dtypes(value: float) -> None:
    short = shortened(torch.tensor(value), "bf16")
    assert short.half().float() == short == short.bfloat16().float()
    assert abs(float(short) - value) <= max(2**-8 * value, 2**-24)
    assert shortened(torch.tensor(value), "f16") == torch.tensor(value).half().float()
