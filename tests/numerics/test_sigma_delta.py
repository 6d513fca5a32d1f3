"""Resampling as matrices against FFTs; the sigma-delta loop, its errors, its refinement."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.hadamard import RandomHadamard
from qdc.numerics.resampling import downsampling, upsampling
from qdc.numerics.sigma_delta import Coded, Levels, Shape, SigmaDelta, modulate, row_loss
from qdc.numerics.sigma_search import search_shape
from tests.support.units import correlated_moment, noise

BEST = Shape(0.95, 0.85, 0.5)
"""The best parameters of ternary codes at ratio 1.25 on Gaussian rows."""


@pytest.mark.parametrize(("width", "length"), [(128, 128), (128, 160), (128, 141), (7, 9), (1, 3)])
def test_the_matrices_are_those_of_the_fourier_transforms(width: int, length: int) -> None:
    values, longer = noise(3, width).double(), noise(3, length, 1).double()
    padded = torch.fft.irfft(torch.fft.rfft(values), length) * length / width
    torch.testing.assert_close(values @ upsampling(width, length), padded, rtol=0, atol=1e-12)
    cut = torch.fft.irfft(torch.fft.rfft(longer)[:, : width // 2 + 1], width) * width / length
    torch.testing.assert_close(longer @ downsampling(width, length), cut, rtol=0, atol=1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(0, 60))
def test_what_was_sampled_up_comes_back(width: int, more: int) -> None:
    up, down = upsampling(width, width + more), downsampling(width, width + more)
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(up @ down, identity, rtol=0, atol=1e-5)
    # Exact sums in fp64, so a constant is kept exactly.
    assert torch.equal(down.sum(0), torch.ones(width, dtype=torch.float64))
    assert torch.equal(down * 2**24, (down * 2**24).round())


def test_a_shorter_row_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be resampled"):
        upsampling(8, 7)


@pytest.mark.parametrize("levels", ["ternary", "binary"])
def test_is_the_published_loop(levels: Levels) -> None:
    inputs, threshold = noise(4, 50) * 4, torch.tensor([0.0, 0.3, 0.5, 0.9])
    codes = modulate(inputs, threshold, levels)
    for row in range(4):
        state = before = 0.0
        for place in range(50):
            state += float(inputs[row, place]) - before
            if levels == "binary":
                before = 1.0 if state > 0 else -1.0
            else:
                before = (
                    0.0 if abs(state) < float(threshold[row]) else float((state > 0) - (state < 0))
                )
            assert codes[row, place] == before


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1 << 30), st.floats(0, 0.99), st.sampled_from(["ternary", "binary"]))
def test_the_integrator_stays_bounded(seed: int, cut: float, levels: Levels) -> None:
    inputs = torch.rand(3, 100, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    codes = modulate(inputs, torch.full((3,), cut), levels).float()
    # The integrator before a code is taken off it.
    state = (inputs - codes).cumsum(1) + codes
    assert float(state.abs().max()) <= max(cut + 1, 2) + 1e-4


def test_ratio_one_without_feedback_is_the_sign_of_the_rotated_block() -> None:
    code = SigmaDelta(RandomHadamard.of(32, 3), 32, "binary")
    centred, mean = code.sampled(noise(5, 32))
    rotated = code.rotation.forward(noise(5, 32))
    torch.testing.assert_close(centred + mean[:, None], rotated, rtol=0, atol=1e-5)
    first = modulate(centred[:, :1], torch.zeros(5), "binary")
    assert torch.equal(first[:, 0], torch.where(centred[:, 0] > 0, 1, -1).to(torch.int8))


def some_codes(code: SigmaDelta, rows: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 2, (rows, code.length), generator=generator).to(torch.int8)


def test_a_written_block_is_linear_in_its_codes_scale_and_mean() -> None:
    code = SigmaDelta(RandomHadamard.of(48, 1), 60, "ternary")
    one, two = some_codes(code, 4, 0), some_codes(code, 4, 1)
    scale, none = torch.full((4,), 0.25), torch.zeros(4)
    basis, ones = code.basis(torch.device("cpu"))
    for codes in (one, two):
        expected = codes.float() @ basis * 0.25 + 0.5 * ones
        found = code.dense(Coded(codes, scale, none + 0.5))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_no_order_of_sums_changes_a_written_block() -> None:
    code = SigmaDelta(RandomHadamard.of(128, 1), 160, "ternary")
    codes = some_codes(code, 6, 0)
    scale, mean = torch.linspace(0.01, 3, 6).half().float(), torch.linspace(-1, 1, 6).half().float()
    down = downsampling(128, 160)
    mixed = torch.zeros(6, 128, dtype=torch.float64)
    for place in torch.randperm(160, generator=torch.Generator().manual_seed(0)).tolist():
        mixed += codes[:, place, None].double() * down[place]
    mixed = mixed * scale[:, None].double() + mean[:, None].double()
    assert torch.equal(code.dense(Coded(codes, scale, mean)), code.rotation.inverse(mixed).float())


def relative(code: SigmaDelta, block: Tensor, coded: Coded) -> float:
    return float((code.dense(coded) - block).square().sum() / block.square().sum())


@pytest.mark.parametrize(
    ("levels", "ratio", "shape", "expected"),
    [("ternary", 1.25, BEST, 0.273), ("ternary", 1.75, Shape(0.95, 0.93, 0.55), 0.156)],
)
def test_reproduces_the_reference_errors_on_gaussian_rows(
    levels: Levels, ratio: float, shape: Shape, expected: float
) -> None:
    block = noise(1024, 128)
    code = SigmaDelta(RandomHadamard.of(128, 0), int(128 * ratio), levels)
    assert relative(code, block, code.fit(block, shape)) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("levels", ["ternary", "binary"])
def test_refinement_never_raises_the_loss_of_a_row(levels: Levels) -> None:
    block, metric = noise(24, 40), correlated_moment(40)
    code = SigmaDelta(RandomHadamard.of(40, 0), 50, levels)
    coded = code.fit(block, Shape())
    losses: list[Tensor] = []
    steps: list[Callable[[Coded], Coded]] = [
        lambda c: c,
        lambda c: code.refitted(block, c, metric),
        lambda c: code.swept(block, c, metric, 1),
        lambda c: code.refitted(block, c, metric),
        lambda c: code.swept(block, c, metric, 1),
    ]
    for step in steps:
        coded = step(coded)
        losses.append(row_loss(block - code.dense(coded), metric))
    for before, after in pairwise(losses):
        assert bool((after <= before * (1 + 1e-4)).all())
    assert float(losses[-1].sum()) < 0.5 * float(losses[0].sum())


def test_rows_of_zeros_and_constants_are_coded() -> None:
    code = SigmaDelta(RandomHadamard.of(16, 0), 20, "ternary")
    block = torch.stack([torch.zeros(16), code.rotation.inverse(torch.full((16,), 0.5))])
    coded = code.refine(block, code.fit(block, Shape()), torch.eye(16), 1, 1)
    torch.testing.assert_close(code.dense(coded), block, rtol=0, atol=1e-3)
    assert float(code.dense(coded)[0].abs().max()) == 0


def test_the_search_says_the_error_that_its_parameters_have() -> None:
    block = noise(64, 32)
    code = SigmaDelta(RandomHadamard.of(32, 0), 40, "ternary")
    shape, error = search_shape(code, block)
    assert error == pytest.approx(relative(code, block, code.fit(block, shape)), rel=1e-3)
    assert error <= relative(code, block, code.fit(block, Shape(0.9, 0.9, 0.5)))
