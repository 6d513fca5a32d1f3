"""Mask geometries: what is masked at which time, block by block, stratified, never the prompt."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import InvalidCalibration
from qdc.numerics.random_numbers import uniforms
from qdc.passkit.geometry import (
    behind_prefix,
    block_diffusion,
    grid,
    scattered,
    stratified,
    unmasked,
)

MASK = 7


def windows(samples: int, length: int) -> Tensor:
    return torch.arange(samples * length).view(samples, length) + 100


def test_scattered_on_the_grid_is_masked_calibration_simulation() -> None:
    """The default geometry draws the very masks that it always drew: row i at time (i + 1) / N."""
    clean = windows(9, 50)
    before = clean.clone()
    noisy, masked = scattered(clean, behind_prefix(9, 50, 0.25), grid(9), MASK, seed=3)
    rows = [uniforms(50, "calibration mask", 3, i) < (i + 1) / 9 for i in range(9)]
    expected = torch.stack(rows) & (torch.arange(50) >= 12)
    assert torch.equal(masked, expected)
    assert torch.equal(noisy, torch.where(expected, MASK, clean))
    assert torch.equal(clean, before)


def test_each_sample_is_masked_as_its_time_says() -> None:
    samples, length = 32, 4096
    maskable = behind_prefix(samples, length, 0.25)
    _, masked = scattered(windows(samples, length), maskable, grid(samples), MASK, seed=0)
    assert not masked[:, : length // 4].any()
    shares = masked[:, length // 4 :].float().mean(1)
    error = (grid(samples) * (1 - grid(samples)) / (0.75 * length)).sqrt()
    assert ((shares - grid(samples)).abs() <= 4.5 * error).all()
    assert masked.float().mean().item() == pytest.approx(0.75 * 33 / 64, abs=0.005)


def test_grid_with_and_without_the_clean_end() -> None:
    assert torch.equal(grid(5), torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0]))
    assert grid(5, clean_copy=True).tolist() == [0, 0.25, 0.5, 0.75, 1]
    with pytest.raises(InvalidCalibration, match="found 1 time, need 2"):
        grid(1, clean_copy=True)


@given(count=st.integers(1, 50), seed=st.integers(0, 9))
def test_stratified_times_fall_one_in_each_part(count: int, seed: int) -> None:
    found = stratified(count, seed)
    assert (found * count).floor().tolist() == list(range(count))


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(2, 60),
    size=st.integers(1, 20),
    time=st.floats(0, 1, width=32),
    prompt=st.integers(0, 10),
    seed=st.integers(0, 99),
)
def test_blocks_are_visible_then_in_work_then_masked(
    length: int, size: int, time: float, prompt: int, seed: int
) -> None:
    clean = windows(1, length)
    maskable = (torch.arange(length) >= min(prompt, length - 1))[None]
    noisy, masked = block_diffusion(clean, maskable, torch.tensor([time]), MASK, seed, size)
    assert not masked[~maskable].any()
    assert torch.equal(noisy, torch.where(masked, MASK, clean))
    parts = torch.split(masked[maskable], size)
    whole = [bool(part.all()) for part in parts]
    none = [not bool(part.any()) for part in parts]
    mixed = [not w and not n for w, n in zip(whole, none, strict=True)]
    assert sum(mixed) <= 1
    left = time * len(parts)
    for number in range(len(parts)):
        if number < len(parts) - left - 1e-6 - 1:
            assert none[number]
        if number > len(parts) - left + 1e-6:
            assert whole[number]


def test_a_block_in_work_is_masked_as_its_time_says() -> None:
    """Time 0.375 of four blocks leaves one and a half: half of the third, all of the fourth."""
    clean = windows(1, 4000)
    everywhere = torch.ones(1, 4000, dtype=torch.bool)
    _, masked = block_diffusion(clean, everywhere, torch.tensor([0.375]), MASK, 0, 1000)
    shares = [part.float().mean().item() for part in torch.split(masked[0], 1000)]
    assert shares[:2] == [0, 0]
    assert shares[2] == pytest.approx(0.5, abs=0.06)
    assert shares[3] == 1


def test_the_ends_of_time() -> None:
    clean, everywhere = windows(2, 30), behind_prefix(2, 30, 0.2)
    ends = torch.tensor([0.0, 1.0])
    for masked in (
        scattered(clean, everywhere, ends, MASK, 0)[1],
        block_diffusion(clean, everywhere, ends, MASK, 0, 8)[1],
    ):
        assert not masked[0].any()
        assert torch.equal(masked[1], everywhere[1])


def test_unmasked_changes_nothing() -> None:
    clean = windows(2, 5)
    noisy, masked = unmasked(clean)
    assert torch.equal(noisy, clean)
    assert not masked.any()


def test_blocks_of_attention_are_counted_from_the_beginning() -> None:
    """A prompt that ends within a block leaves the rest of it as the first one."""
    clean = windows(1, 16)
    maskable = torch.zeros(1, 16, dtype=torch.bool)
    maskable[0, 6:8] = maskable[0, 12:] = True
    last = torch.tensor([0.5])
    _, masked = block_diffusion(clean, maskable, last, MASK, 0, 4, aligned=True)
    assert masked[0].nonzero().flatten().tolist() == [12, 13, 14, 15]
    _, everything = block_diffusion(clean, maskable, torch.ones(1), MASK, 0, 4, aligned=True)
    assert torch.equal(everything, maskable)
    plain = torch.ones(1, 16, dtype=torch.bool)
    for time in (0.1, 0.4, 0.9):
        given = (clean, plain, torch.tensor([time]), MASK, 0, 4)
        assert torch.equal(block_diffusion(*given)[1], block_diffusion(*given, aligned=True)[1])
