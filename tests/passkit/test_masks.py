"""Masked Calibration Simulation: the grid of times, the prefix, and streams that never meet."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.errors import InvalidCalibration
from qdc.numerics.random_numbers import uniforms
from qdc.passkit.masks import draw_mask, mask_windows, times


def test_grid() -> None:
    """Four samples are seen at quarters, the last one fully masked."""
    assert times(4).tolist() == [0.25, 0.5, 0.75, 1.0]
    assert times(128).dtype == torch.float32
    assert times(128)[0] == 1 / 128


@settings(max_examples=60, deadline=None)
@given(
    samples=st.integers(1, 64),
    place=st.integers(0, 10**6),
    length=st.integers(0, 200),
    prefix=st.floats(0, 0.99),
    seed=st.integers(-(2**63), 2**63),
)
def test_mask(samples: int, place: int, length: int, prefix: float, seed: int) -> None:
    """The prefix is never masked, the last time masks all the rest, and a mask repeats."""
    index = place % samples
    masked = draw_mask(index, samples, length, prefix, seed)
    assert masked.shape == (length,)
    assert masked.dtype == torch.bool
    visible = int(prefix * length)
    assert not masked[:visible].any()
    assert draw_mask(samples - 1, samples, length, prefix, seed)[visible:].all()
    assert torch.equal(masked, draw_mask(index, samples, length, prefix, seed))


def test_share() -> None:
    """Each sample is masked as its time says; all of them as (N + 1) / 2N says."""
    samples, length = 32, 4096
    _, masked = mask_windows(torch.zeros(samples, length, dtype=torch.int64), 1, 0.25, seed=0)
    shares = masked[:, length // 4 :].float().mean(1)
    error = (times(samples) * (1 - times(samples)) / (0.75 * length)).sqrt()
    assert ((shares - times(samples)).abs() <= 4.5 * error).all()
    assert masked.float().mean().item() == pytest.approx(0.75 * 33 / 64, abs=0.005)


def test_windows_keep_what_is_visible() -> None:
    """Masked places hold the mask id, the others their token; the clean windows stay."""
    windows = torch.arange(600).view(6, 100) + 10
    before = windows.clone()
    noisy, masked = mask_windows(windows, 7, 0.25, seed=5)
    assert torch.equal(windows, before)
    assert torch.equal(noisy, torch.where(masked, 7, windows))
    assert all(torch.equal(masked[i], draw_mask(i, 6, 100, 0.25, 5)) for i in range(6))


def test_streams_never_meet() -> None:
    """Seed and index are kept apart, also where their sum, their text or their low bits agree."""
    keys = [(0, 1), (1, 0), (0, 0), (1, 10), (11, 0), (2**32, 0), (2**32 + 1, 0), (-1, 0), (0, 2)]
    draws = [tuple(uniforms(8, "calibration mask", *key).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)
    assert not torch.equal(uniforms(8, 1), uniforms(8, "1"))
    first, second = (draw_mask(1, 4, 4096, 0.0, seed) for seed in (0, 1))
    assert (first == second).float().mean().item() == pytest.approx(0.5, abs=0.04)


def test_uniforms() -> None:
    """Numbers lie in [0, 1) on a grid of 2**-24, evenly; a longer draw begins with the shorter."""
    draw = uniforms(20_000, "test")
    assert draw.dtype == torch.float32
    assert draw.min() >= 0
    assert draw.max() < 1
    assert torch.equal(draw * 2**24, (draw * 2**24).round())
    assert torch.equal(draw[:10], uniforms(10, "test"))
    counts = (draw * 20).long().bincount(minlength=20)
    assert ((counts - 1000).square() / 1000).sum() < 50
    assert uniforms(0, "test").shape == (0,)


def test_uniforms_are_pinned() -> None:
    """These very numbers; a change would alter every compiled model."""
    expected = [14252367, 3801706, 4384486]
    assert (uniforms(3, "calibration mask", 0, 0) * 2**24).long().tolist() == expected


@pytest.mark.parametrize("prefix", [-0.1, 1.0, float("nan")])
def test_senseless_prefix(prefix: float) -> None:
    """A prefix must leave something to mask."""
    with pytest.raises(InvalidCalibration, match=r"found prefix .*need a share of at least 0") as c:
        draw_mask(0, 4, 8, prefix, 0)
    assert "0.25" in c.value.help


def test_senseless_counts() -> None:
    """No samples, or a sample outside them, are refused."""
    with pytest.raises(InvalidCalibration, match="found 0 samples, need at least 1"):
        times(0)
    with pytest.raises(InvalidCalibration, match="found index 4, need one of 0 to 3"):
        draw_mask(4, 4, 8, 0.25, 0)
    with pytest.raises(InvalidCalibration, match="found no sample to mask"):
        mask_windows(torch.zeros(0, 8, dtype=torch.int64), 1, 0.25, 0)
