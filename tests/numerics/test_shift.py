"""Shifts of activations: zero for equal tokens, exact on small examples."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics import shift as module
from qdc.numerics.shift import (
    FLOOR,
    Statistics,
    StatisticsAccumulator,
    divergences,
    eigenspace_overlap,
    leading_eigenvectors,
    shift,
    together,
)


def noise(tokens: int, columns: int, seed: int = 0) -> Tensor:
    found: Tensor = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    return found * torch.linspace(3, 0.5, columns)


def statistics(rows: Tensor) -> Statistics:
    accumulator = StatisticsAccumulator(rows.shape[1])
    for part in torch.split(rows, 7):
        accumulator.add(part)
    found = accumulator.value()
    assert found is not None
    return found


def test_statistics_are_mean_and_variance() -> None:
    rows = noise(100, 6) + 2
    found = statistics(rows)
    torch.testing.assert_close(found.mean, rows.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        found.variance, rows.double().var(0, correction=0), rtol=1e-4, atol=1e-5
    )
    assert found.tokens == 100
    assert StatisticsAccumulator(3).value() is None


def test_parts_put_together_are_the_whole() -> None:
    rows = noise(90, 5) + 1
    whole, parts = statistics(rows), together([statistics(rows[:20]), statistics(rows[20:])])
    torch.testing.assert_close(parts.moment, whole.moment)
    torch.testing.assert_close(parts.mean, whole.mean)
    assert parts.tokens == whole.tokens


def test_equal_tokens_do_not_differ() -> None:
    found = statistics(noise(200, 12))
    none = shift(found, found, leading_eigenvectors(found.moment, 4))
    assert none is not None
    assert none.overlap == pytest.approx(1, abs=1e-5)
    assert (none.trace, none.distance, none.divergence) == (0, 0, 0)


@settings(max_examples=20, deadline=None)
@given(scale=st.floats(0.1, 10))
def test_scaled_tokens(scale: float) -> None:
    """Twice the activations: four times the energy, the same eigenspaces."""
    rows = noise(300, 10)
    one, other = statistics(rows), statistics(rows * scale)
    found = shift(other, one, leading_eigenvectors(one.moment, 3))
    assert found is not None
    assert found.trace == pytest.approx(2 * math.log(scale), abs=1e-4)
    assert found.distance == pytest.approx(abs(scale**2 - 1), rel=1e-3, abs=1e-4)
    assert found.overlap == pytest.approx(1, abs=1e-4)


def test_divergence_of_gaussians() -> None:
    """One channel moved by one sigma, one twice as wide, one unchanged, one constant."""
    reference = Statistics(torch.diag(torch.tensor([1.0, 1, 1, 0])), torch.zeros(4).double(), 9)
    moved = Statistics(torch.diag(torch.tensor([2.0, 4, 1, 0])), torch.eye(4)[0].double(), 9)
    expected = [0.5, (4 - 1 - math.log(4)) / 2, 0]
    assert divergences(moved, reference).tolist() == pytest.approx(expected)
    equal = Statistics(torch.diag(torch.tensor([1.0, 0, 1, 1])), torch.eye(4)[0].double(), 9)
    found = divergences(equal, reference)
    assert found[0] == pytest.approx((FLOOR - 1 - math.log(FLOOR) + 1) / 2)
    assert found.isfinite().all()


def test_overlap_counts_shared_directions() -> None:
    eye = torch.eye(6)
    assert eigenspace_overlap(eye[:, :4], eye[:, :4]) == 1
    assert eigenspace_overlap(eye[:, :4], eye[:, 2:]) == 0.5
    assert eigenspace_overlap(eye[:, :3], eye[:, 3:]) == 0


def test_wide_moments_take_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = statistics(noise(500, 80)).moment
    exact = leading_eigenvectors(moment, 5)
    monkeypatch.setattr(module, "EXACT", 10)
    found = leading_eigenvectors(moment, 5)
    assert found.shape == (80, 5)
    assert eigenspace_overlap(found, exact) == pytest.approx(1, abs=1e-3)
    assert torch.equal(found, leading_eigenvectors(moment, 5))


def test_nothing_cannot_be_compared() -> None:
    zero = Statistics(torch.zeros(3, 3), torch.zeros(3).double(), 5)
    some = statistics(noise(20, 3))
    assert shift(some, zero, torch.eye(3)[:, :1]) is None
