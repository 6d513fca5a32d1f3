"""Masks of likelihoods: counts, weights, and that their estimates are unbiased."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdc.evaluation.harness.draws import even_times, exact_counts


@given(st.integers(1, 9), st.integers(1, 70), st.integers(0, 999))
def test_every_token_has_weight_one_on_average(size: int, number: int, seed: int) -> None:
    """LLaDA's draws: the weights of all masks sum to the mean of size over count; none is empty."""
    found = exact_counts(size, number, str(seed))
    counts = found.masks.sum(1)
    assert counts.min() >= 1
    assert len(torch.unique(found.masks, dim=0)) == len(found.masks)
    total = float((found.weights * counts).sum())
    assert total == pytest.approx(size)


def test_counts_are_stratified() -> None:
    """32 masks of 8 tokens have each count four times; 5 of 10 have every second one."""
    for number, size in ((32, 8), (64, 8), (5, 10)):
        found = exact_counts(size, number, "key")
        masks = (found.weights * found.masks.sum(1) / size * number).round().long()
        counts = found.masks.sum(1).repeat_interleave(masks).bincount(minlength=size + 1)[1:]
        assert int(counts.sum()) == number
        assert int(counts.max()) - int(counts.min()) <= 1


def test_counts_follow_the_published_rule() -> None:
    from qdc.numerics.random_numbers import uniforms

    size, number = 7, 32
    first = 1 + int(float(uniforms(1, "k", "count", 0)) * size)
    expected = sorted(
        (math.floor(first + i * size / number + 0.5) - 1) % size + 1 for i in range(number)
    )
    found = exact_counts(size, number, "k")
    times = (found.weights * found.masks.sum(1) / size * number).round().long()
    assert sorted(found.masks.sum(1).repeat_interleave(times).tolist()) == expected


def test_one_token_needs_one_mask() -> None:
    found = exact_counts(1, 128, "key")
    assert found.masks.tolist() == [[True]]
    assert found.weights.tolist() == pytest.approx([1.0])


@pytest.mark.parametrize("draw", [exact_counts, even_times])
def test_estimates_are_unbiased(draw: object) -> None:
    """If a masked token loses c nats where a share c is masked, both bounds are the mean of c.

    For exact counts that is (size + 1) / 2 / size a token; for times, the mean over p of
    (1 + (size - 1) p) / size.
    """
    size, keys = 6, 300
    assert draw in (exact_counts, even_times)
    function = exact_counts if draw is exact_counts else even_times
    totals = []
    for key in range(keys):
        found = function(size, 32, str(key))
        counts = found.masks.sum(1).double()
        totals.append(float((found.weights * counts * counts / size).sum() / size))
    expected = (size + 1) / 2 / size
    if function is even_times:
        expected = (1 + (size - 1) * 0.5005) / size
    spread = torch.tensor(totals).std() / keys**0.5
    assert sum(totals) / keys == pytest.approx(expected, abs=4 * float(spread) + 1e-6)


def test_times_are_spread_evenly() -> None:
    """Every mask probability falls into its own 32nd, so that the weights are 1 / p / 32."""
    found = even_times(400, 32, "key")
    chances = (1 / found.weights / 32).sort().values
    assert len(chances) == 32
    gaps = chances.diff()
    assert torch.allclose(gaps, torch.full_like(gaps, 0.999 / 32))
    drawn = found.masks.double().mean(1)
    assert float((drawn - 1 / found.weights / 32).abs().max()) < 0.12
