"""Grids with an integer zero point: levels, spans, the search against all ranges, refits."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.zeropoint import ZeroPointGrid, search_span
from tests.support.units import correlated_moment, noise

FACTORS = torch.tensor([1.0, 0.9, 0.7, 0.5, 1.1])


def levels(grid: ZeroPointGrid) -> Tensor:
    """f32[n, 2^bits]."""
    codes = torch.arange(2**grid.bits)
    return grid.scale[:, None] * (codes - grid.zero[:, None])


@given(st.integers(1, 4), st.integers(0, 50))
def test_every_number_takes_the_level_nearest_to_it(bits: int, seed: int) -> None:
    block = noise(5, 24, seed)
    grid = ZeroPointGrid.spanning(block.amin(1), block.amax(1), bits)
    written = grid.round(block)
    distance = (block[:, :, None] - levels(grid)[:, None, :]).abs()
    torch.testing.assert_close((block - written).abs(), distance.amin(-1), rtol=0, atol=1e-6)
    for column in (0, 23):
        assert torch.equal(grid.nearest(column, block[:, column]), written[:, column])
    codes = grid.encode(written)
    assert torch.equal(levels(grid).gather(1, codes.long()), written)
    if bits > 1:
        assert (levels(grid) == 0).any(1).all()


@pytest.mark.parametrize("bits", [1, 2, 3])
@pytest.mark.parametrize("norm", [2.0, 2.4])
def test_the_search_is_the_best_of_all_ranges(bits: int, norm: float) -> None:
    block, weights = noise(7, 32, 3), 1 + noise(7, 32, 4).abs()
    low, high = block.amin(1), block.amax(1)
    found = search_span(block, low, high, bits, FACTORS, norm, weights)
    middle = (low + high) / 2 if bits == 1 else 0 * low
    losses = []
    for factor in FACTORS:
        first, last = (middle + factor * (end - middle) for end in (low, high))
        written = ZeroPointGrid.spanning(first, last, bits).round(block)
        losses.append((weights * (written - block).abs() ** norm).sum(1))
    best = torch.stack(losses).amin(0)
    torch.testing.assert_close((weights * (found.round(block) - block).abs() ** norm).sum(1), best)


@given(st.integers(1, 4), st.integers(0, 50))
def test_a_refit_raises_the_cost_of_no_row(bits: int, seed: int) -> None:
    block, metric = noise(5, 16, seed), correlated_moment(16, seed)
    first = ZeroPointGrid.spanning(block.amin(1), block.amax(1), bits)
    dense = first.round(block)
    grid, refitted = first.refit(block, dense, metric)
    before, after = (((e @ metric) * e).sum(1) for e in (block - dense, block - refitted))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < before.sum()
    assert torch.equal(grid.encode(refitted), first.encode(dense))
    assert torch.equal(grid.round(refitted), refitted)
    assert torch.equal(grid.scale.half().float(), grid.scale)
    assert grid.zero_code().max() <= 15


def test_zeros_stay_zeros_and_a_scale_beyond_fp16_is_said() -> None:
    nothing = torch.zeros(2, 8)
    for bits in (1, 2, 4):
        grid = ZeroPointGrid.spanning(nothing[:, 0], nothing[:, 0], bits)
        assert not grid.round(nothing).any()
        assert not grid.encode(nothing).any()
        _, refitted = grid.refit(nothing, nothing, torch.eye(8))
        assert not refitted.any()
    with pytest.raises(OverflowError):
        ZeroPointGrid.spanning(torch.tensor([-1e6]), torch.tensor([1e6]), 2)
    huge = torch.tensor([[-1e6, 1e6]])
    with pytest.raises(OverflowError):
        search_span(huge, huge[:, 0], huge[:, 1], 2, FACTORS, 2.4)
