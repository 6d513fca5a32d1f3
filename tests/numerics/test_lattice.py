"""The E8P codebook: its points, and the search against all of them."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.numerics.lattice import POINTS, lattice_points, nearest_codes, tables

ALL = lattice_points(torch.arange(POINTS))


def test_has_exactly_65536_points_of_the_definition() -> None:
    assert len(set(map(tuple, ALL.tolist()))) == POINTS
    shift = torch.where(((ALL - 0.25) % 1 == 0.5).all(1, keepdim=True), 0.25, -0.25)
    assert int((shift == 0.25).sum()) == POINTS // 2
    halves = ALL - shift
    assert bool((halves % 1 == 0.5).all())
    assert bool((halves.sum(1) % 2 == 0).all())
    shells = Counter(halves.square().sum(1).tolist())
    norms, counts = zip(*sorted(shells.items()), strict=True)
    assert norms == (2, 4, 6, 8, 10, 12)
    # Each pattern of magnitudes has 128 signs and two shifts.
    patterns = [count // 256 for count in counts]
    assert sum(patterns[:-1]) == 227
    assert patterns[-1] == 29
    inside = [
        p for p in itertools.product((0.5, 1.5, 2.5), repeat=8) if sum(x * x for x in p) <= 10
    ]
    assert set(inside) <= set(map(tuple, tables(torch.device("cpu")).patterns.tolist()))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 30), st.sampled_from([0.3, 0.8, 1.0, 1.5, 3.0]))
def test_the_search_finds_the_nearest_of_all(seed: int, size: float) -> None:
    vectors = torch.randn(16, 8, generator=torch.Generator().manual_seed(seed)) * size
    distances = torch.cdist(vectors.double(), ALL.double()).square()
    found = (vectors - lattice_points(nearest_codes(vectors))).double().square().sum(1)
    torch.testing.assert_close(found, distances.min(1).values, rtol=1e-5, atol=1e-6)


def test_a_point_is_its_own_nearest() -> None:
    assert torch.equal(nearest_codes(ALL), torch.arange(POINTS))
    assert nearest_codes(ALL[:0]).shape == (0,)


@pytest.mark.parametrize(("scale", "expected"), [(1.03, 0.092), (0.9, 0.0997)])
def test_reproduces_the_reference_error_on_gaussian_numbers(scale: float, expected: float) -> None:
    vectors = torch.randn(1 << 15, 8, generator=torch.Generator().manual_seed(0))
    error = vectors - lattice_points(nearest_codes(vectors * scale)) / scale
    assert float(error.square().mean()) == pytest.approx(expected, rel=0.03)
