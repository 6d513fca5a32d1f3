"""Intervals and errors of means over documents."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdc.evaluation.bootstrap import RESAMPLES, by_group, interval, standard_error


def test_one_resample_written_out() -> None:
    """The interval's ends are quantiles of ratios of resampled sums, drawn group by group."""
    from qdc.numerics.random_numbers import uniforms

    sums, weights = torch.tensor([3.0, 1.0, 8.0]), torch.tensor([2.0, 1.0, 4.0])
    draws = uniforms(RESAMPLES * 3, "bootstrap", 3, 0).tolist()
    ratios = []
    for start in range(0, len(draws), 3):
        places = [int(draw * 3) for draw in draws[start : start + 3]]
        ratios.append(float(sums[places].sum() / weights[places].sum()))
    ordered = torch.tensor(ratios, dtype=torch.float64)
    found = interval(sums, weights)
    assert found is not None
    assert found[0] == pytest.approx(float(ordered.quantile(0.025)))
    assert found[1] == pytest.approx(float(ordered.quantile(0.975)))


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of 200 samples of 40 normal documents about 95% have the mean 0 in their interval."""
    noise = torch.randn(200, 40, generator=torch.Generator().manual_seed(0)).double()
    ends = [interval(row, torch.ones(40)) for row in noise]
    covered = sum(end is not None and end[0] <= 0 <= end[1] for end in ends)
    assert 180 <= covered <= 198


def test_documents_stay_whole() -> None:
    """Windows that repeat their document add no certainty, and their order is nothing."""
    values = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    alone = interval(values, torch.ones(12))
    owners = torch.arange(12).repeat(5)
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(2))
    repeated = interval(values.repeat(5)[shuffled], torch.ones(60), owners[shuffled])
    assert repeated == pytest.approx(alone)
    errors = (
        standard_error(values, torch.ones(12)),
        standard_error(values.repeat(5), torch.ones(60), owners),
    )
    assert errors[0] == pytest.approx(float(values.std() / 12**0.5))
    assert errors[1] == pytest.approx(errors[0])
    windows = interval(values.repeat(5), torch.ones(60))
    assert windows is not None
    assert alone is not None
    assert windows[1] - windows[0] < 0.6 * (alone[1] - alone[0])


def test_fewer_than_two_documents_have_no_interval() -> None:
    one = torch.ones(4)
    assert interval(one, one, torch.zeros(4, dtype=torch.int64)) is None
    assert standard_error(one, one, torch.zeros(4, dtype=torch.int64)) is None
    assert interval(one[:1], one[:1]) is None


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8), st.floats(0.5, 3))
def test_interval_moves_and_scales_with_the_values(values: list[int], factor: float) -> None:
    sums, ones = torch.tensor(values).double(), torch.ones(len(values)).double()
    low, high = interval(sums, ones) or (0.0, 0.0)
    assert low <= high
    assert interval(factor * sums + 1, ones) == pytest.approx((factor * low + 1, factor * high + 1))


def test_sums_by_group() -> None:
    groups = torch.tensor([7, 2, 7, 9])
    assert by_group(torch.tensor([1.0, 2.0, 3.0, 4.0]), groups).tolist() == [2, 4, 4]
