"""Trellis codes: their levels by the rule, the search against all rings, and its error."""

import math
from itertools import product
from statistics import NormalDist

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.trellis import (
    FACTORS,
    Code,
    Trellis,
    bits_of_steps,
    levels,
    ring_bits,
    ring_states,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("window", sorted(FACTORS))
def test_levels_are_quantiles_in_an_order_of_their_own(window: int) -> None:
    square, linear = FACTORS[window]
    count = 1 << window
    places = [(square * s * s + linear * s) % count for s in range(count)]
    assert sorted(places) == list(range(count))
    found = levels("quadratic", window, CPU)
    for s in range(0, count, max(1, count // 200)):
        quantile = NormalDist().inv_cdf((places[s] + 0.5) / count)
        assert float(found[s]) == round(256 * quantile) / 256
    assert float(found.square().mean()) == pytest.approx(1, abs=0.01)


def test_levels_of_the_publication() -> None:
    found = levels("1mad", 16, CPU)
    for s in (0, 1, 777, 65535):
        word = (34038481 * s + 76625530) % 2**32
        assert float(found[s]) == (sum(word.to_bytes(4, "little")) - 510) / 128
    assert float(found.std()) == pytest.approx(147.8 / 128, rel=0.01)


def test_steps_take_bits_as_evenly_as_can_be() -> None:
    assert bits_of_steps(4, 16) == (2, 2, 2, 2)
    assert bits_of_steps(4, 12) == (1, 2, 1, 2)
    assert bits_of_steps(5, 9) == (1, 1, 1, 1, 1)
    assert sum(bits_of_steps(64, 13)) == 64 * 13 // 8


@settings(max_examples=20)
@given(st.integers(8, 32), st.integers(16, 70), st.sampled_from([8, 10, 16]), st.integers(0, 9))
def test_windows_are_read_from_the_bits_of_a_ring(
    rate: int, steps: int, window: int, seed: int
) -> None:
    taken = bits_of_steps(steps, rate)
    generator = torch.Generator().manual_seed(seed)
    bits = torch.randint(2, (3, sum(taken)), generator=generator, dtype=torch.uint8)
    states = ring_states(bits, window, taken)
    for ring in range(3):
        text = "".join(map(str, bits[ring].tolist()))
        for step in (0, 1, steps // 2, steps - 1):
            end = sum(taken[: step + 1])
            assert int(states[ring, step]) == int((text * 2)[: len(text) + end][-window:], 2)
    assert torch.equal(ring_bits(states.T.long(), taken), bits)


SMALL = Trellis(torch.randn(16, generator=torch.Generator().manual_seed(3)), 4, (1, 2, 2, 1, 2))
RINGS = torch.tensor(list(product((0, 1), repeat=8)), dtype=torch.uint8)


def error(trellis: Trellis, states: Tensor, targets: Tensor) -> Tensor:
    return (trellis.levels[states] - targets).square().sum(0)


@pytest.mark.parametrize("seam", range(5))
def test_again_finds_the_best_of_all_rings_that_pass_the_seam(seam: int) -> None:
    targets = torch.randn(5, 20, generator=torch.Generator().manual_seed(seam))
    every = ring_states(RINGS, 4, SMALL.taken).T.long()
    given_states = every[:, torch.arange(20) * 11 % 256]
    found = SMALL.again(targets, torch.ones(5, 20), given_states, seam)
    assert torch.equal(ring_states(ring_bits(found, SMALL.taken), 4, SMALL.taken).T, found)
    # What the step at the seam takes is new; the bits before it are those of the step before.
    before, kept = (seam - 1) % 5, (1 << (4 - SMALL.taken[seam])) - 1
    for n in range(20):
        passing = every[:, (every[before] & kept) == (given_states[before, n] & kept)]
        best = error(SMALL, passing, targets[:, n : n + 1]).min()
        assert float(error(SMALL, found, targets)[n]) == pytest.approx(float(best), rel=1e-5)


def test_the_search_comes_near_the_best_ring() -> None:
    targets = torch.randn(5, 200, generator=torch.Generator().manual_seed(7))
    every = ring_states(RINGS, 4, SMALL.taken).T.long()
    best = (SMALL.levels[every][:, None] - targets[:, :, None]).square().sum(0).min(1).values
    found = error(SMALL, SMALL.search(targets, torch.ones(5, 200)), targets)
    assert bool((found >= best - 1e-5).all())
    assert float(found.mean()) < 1.25 * float(best.mean())


def test_what_does_not_count_does_not_matter() -> None:
    trellis = Trellis(levels("quadratic", 8, CPU), 8, bits_of_steps(32, 16))
    targets, counts = torch.randn(32, 8), torch.ones(32, 8)
    counts[20:] = 0
    found = trellis.search(targets, counts)
    other = torch.where(counts > 0, targets, 1000.0)
    assert torch.equal(trellis.search(other, counts), found)
    free = error(trellis, found[:20], targets[:20]).mean()
    bound = error(trellis, trellis.search(targets, torch.ones(32, 8))[:20], targets[:20]).mean()
    assert free < bound


def gaussian_error(code: Code, window: int, rate: int, steps: int, count: int) -> float:
    """Of numbers of a normal distribution, at the best scale: a share of their power."""
    targets = torch.randn(steps, count, generator=torch.Generator().manual_seed(4))
    table = levels(code, window, CPU)
    trellis = Trellis(table, window, bits_of_steps(steps, rate))
    size = 1.02 * math.sqrt(1 - 2 ** (-rate / 4)) / float(table.square().mean().sqrt())
    written = table[trellis.search(targets / size, torch.ones_like(targets))]
    share = (written * targets).sum() / written.square().sum()
    return float((targets - share * written).square().mean())


@pytest.mark.parametrize(
    ("window", "rate", "expected"),
    [(10, 8, 0.278), (10, 12, 0.146), (10, 16, 0.0752), (10, 24, 0.0204), (8, 16, 0.0786)],
)
def test_error_on_gaussian_numbers(window: int, rate: int, expected: float) -> None:
    found = gaussian_error("quadratic", window, rate, 128, 64)
    assert found == pytest.approx(expected, rel=0.03)
    assert found > 2 ** (-rate / 4)  # no code of this rate has less


@pytest.mark.slow
def test_reproduces_the_published_error_at_two_bits() -> None:
    assert gaussian_error("1mad", 16, 16, 256, 16) == pytest.approx(0.069, rel=0.03)
