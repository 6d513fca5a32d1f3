"""MultiOSR: ratios by the spread of weights."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.numerics.oversampling import Spread, allocate_ratios, inverse_powers


def spreads(*regions: list[float]) -> list[Spread]:
    return [Spread(np.array(d), np.ones(len(d))) for d in regions]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 10), st.integers(1, 1000)), min_size=1, max_size=5),
        min_size=1,
        max_size=4,
    ),
    st.floats(1, 6),
    st.sampled_from([0.0625, 0.25, 0.3]),
)
def test_a_strict_budget_is_kept_and_nearly_used(
    regions: list[list[tuple[float, int]]], target: float, grid: float
) -> None:
    given_ = [
        Spread(np.array([d for d, _ in r]), np.array([float(s) for _, s in r])) for r in regions
    ]
    ratios = np.concatenate(allocate_ratios(given_, target, grid, 8, strict=True))
    sizes = np.concatenate([region.sizes for region in given_])
    assert ratios.min() >= 1
    assert ratios.max() <= 8
    steps = (ratios - 1) / grid
    assert np.allclose(steps, steps.round())
    mean = np.average(ratios, weights=sizes)
    assert mean <= target + 1e-9
    # No layer could take one more step.
    left = (target - mean) * sizes.sum() / grid
    assert bool((sizes > left - 1e-6)[ratios + grid <= 8].all())


def test_layers_of_little_spread_are_sampled_more_often() -> None:
    ((low, high),) = allocate_ratios(spreads([2.0, 1.0]), 2, 0.25, 8, strict=True)
    assert low < high
    first, second = allocate_ratios(spreads([2.0], [1.0]), 2, 0.25, 8, strict=False)
    # 1 + 2 * (1/5, 4/5), rounded; then brought to the mean of 2, and rounded again.
    assert (first[0], second[0]) == (1.5, 2.5)


def test_equal_spreads_get_equal_ratios() -> None:
    for strict in (False, True):
        for target in (1.0, 1.25, 2.5):
            found = allocate_ratios(spreads([1.0, 1.0], [1.0, 1.0]), target, 0.25, 8, strict=strict)
            assert [ratios.tolist() for ratios in found] == [[target] * 2] * 2


def test_layers_without_spread_are_not_infinite() -> None:
    assert inverse_powers([0.0, 0.0], 2).tolist() == [1, 1]
    assert np.isfinite(inverse_powers([0.0, 1.0], 2)).all()


@pytest.mark.parametrize("target", [1.25, 3.0, 5.0])
def test_the_published_means_hold_before_rounding(target: float) -> None:
    found = allocate_ratios(
        spreads([1.0, 2.0, 1.5], [0.7, 1.1, 3.0]), target, 1e-4, 100, strict=False
    )
    assert np.concatenate(found).mean() == pytest.approx(target, abs=0.01)
