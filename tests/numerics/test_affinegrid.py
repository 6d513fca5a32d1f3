"""Uniform grids as levels: plain rounding, clip search, refits against brute force."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.affinegrid import AffineGrid
from qdc.numerics.uniform import Search, Zero, dense_uniform, fit_grid, fit_uniform

FORMS: list[tuple[Search, Zero]] = [
    (search, zero) for search in ("minmax", "clip") for zero in ("float", "packed")
]


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def metric(columns: int, seed: int = 0) -> Tensor:
    mix = noise(columns, columns, seed + 100)
    return mix @ mix.T / columns + 0.1 * torch.eye(columns)


def cost(block: Tensor, dense: Tensor, m: Tensor) -> np.ndarray:
    error = (block - dense).double().numpy()
    return np.asarray(((error @ m.double().numpy()) * error).sum(1))


@pytest.mark.parametrize(("search", "zero"), FORMS)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_rounds_each_column_as_the_whole_block(bits: int, search: Search, zero: Zero) -> None:
    block = noise(7, 24, bits)
    grid = AffineGrid.fit(block, bits, search, zero)
    columns = [grid.nearest(j, block[:, j]) for j in range(24)]
    expected = fit_uniform(block, bits, search, zero)
    dense = torch.stack(columns, dim=1)
    assert torch.equal(dense, dense_uniform(expected))
    assert torch.equal(grid.encode(dense).codes, expected.codes)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_a_packed_zero_is_a_code_and_zero_is_a_level(bits: int) -> None:
    block = noise(9, 24, bits) + torch.tensor([-9.0, 0.0, 9.0]).repeat(3)[:, None]
    scale, minimum = fit_grid(block, bits, "clip", "packed")
    zero = -minimum / scale
    assert torch.equal(zero, zero.round())
    assert bool(((zero >= 0) & (zero < 2**bits)).all())
    grid = AffineGrid(scale, minimum, bits, "packed")
    assert not grid.nearest(0, torch.zeros(9)).any()


def test_the_packed_form_is_exact_in_fp32() -> None:
    u = fit_uniform(noise(50, 16), 8, "minmax", "packed")
    zero = -u.minimum.double() / u.scale.double()
    exact = u.scale.double()[:, None] * (u.codes.double() - zero[:, None])
    assert torch.equal(dense_uniform(u).double(), exact)


@pytest.mark.parametrize("zero", ["float", "packed"])
@pytest.mark.parametrize("norm", [1.0, 2.0, 2.4])
def test_clip_takes_the_best_of_eighty_ranges(zero: Zero, norm: float) -> None:
    block = noise(5, 40)
    block[0, 3], block[1] = 40.0, block[1] + 20
    found = dense_uniform(fit_uniform(block, 2, "clip", zero, norm))
    for row, dense in zip(block, found, strict=True):
        low, high = row.min(), row.max()
        centre = torch.zeros(()).clamp(low, high)
        losses = []
        for i in range(80):
            part = torch.stack([low - i / 100 * (low - centre), high - i / 100 * (high - centre)])
            grid = AffineGrid.fit(part[None], 2, "minmax", zero)
            codes = torch.stack([grid.nearest(j, row[j : j + 1])[0] for j in range(40)])
            losses.append(float((codes - row).abs().pow(norm).sum()))
        assert float((dense - row).abs().pow(norm).sum()) == pytest.approx(min(losses), rel=1e-3)


@pytest.mark.parametrize(("zero", "expected"), [("float", 0.116), ("packed", 0.136)])
def test_clip_halves_the_error_of_gaussian_rows(zero: Zero, expected: float) -> None:
    block = noise(256, 128)
    plain, clipped = (
        float((dense_uniform(fit_uniform(block, 2, s, zero, 2)) - block).square().mean())
        for s in ("minmax", "clip")
    )
    assert plain == pytest.approx(0.256, abs=0.03)
    assert clipped == pytest.approx(expected, abs=0.006)


def test_clip_saves_what_lies_beyond_fp16() -> None:
    row = torch.tensor([[-7e4, 0.0, 1.0, 2.0]])
    with pytest.raises(OverflowError, match="fp16"):
        fit_uniform(row, 2)
    assert dense_uniform(fit_uniform(row, 2, "clip")).isfinite().all()
    with pytest.raises(OverflowError, match="fp16"):
        fit_uniform(row * 1e3, 2, "clip")


@pytest.mark.parametrize("zero", ["float", "packed"])
@pytest.mark.parametrize("seed", range(6))
def test_a_refit_never_raises_the_cost_of_a_row(seed: int, zero: Zero) -> None:
    block, m = noise(12, 16, seed), metric(16, seed)
    grid = AffineGrid.fit(block, 2, "minmax", zero)
    dense = torch.stack([grid.nearest(j, block[:, j]) for j in range(16)], dim=1)
    refitted, again = grid.refit(block, dense, m)
    before, after = cost(block, dense, m), cost(block, again, m)
    assert np.all(after <= before * (1 + 1e-6))
    assert after.sum() < 0.95 * before.sum()
    kept = refitted.encode(again)
    assert torch.equal(dense_uniform(kept), again)
    assert torch.equal(kept.codes, grid.encode(dense).codes)


def test_a_refit_of_a_free_minimum_is_the_least_squares_solution() -> None:
    block, m = noise(6, 16), metric(16)
    grid = AffineGrid.fit(block, 2)
    dense = torch.stack([grid.nearest(j, block[:, j]) for j in range(16)], dim=1)
    refitted = grid.refit(block, dense, m)[0]
    codes = grid.encode(dense).codes.double().numpy()
    root = np.linalg.cholesky(m.double().numpy())
    for i in range(6):
        system = root.T @ np.stack([codes[i], np.ones(16)], axis=1)
        best = np.linalg.lstsq(system, root.T @ block[i].double().numpy(), rcond=None)[0]
        found = [float(refitted.scale[i]), float(refitted.minimum[i])]
        np.testing.assert_allclose(found, best, rtol=2e-3, atol=1e-3)


def test_a_refit_of_a_packed_zero_is_the_best_of_all() -> None:
    block, m = noise(8, 12), metric(12)
    grid = AffineGrid.fit(block, 2, "minmax", "packed")
    dense = torch.stack([grid.nearest(j, block[:, j]) for j in range(12)], dim=1)
    codes = grid.encode(dense).codes.float()
    _, again = grid.refit(block, dense, m)
    best = np.full(8, np.inf)
    for zero, scale in itertools.product(range(4), torch.arange(0.1, 2.5, 0.002)):
        best = np.minimum(best, cost(block, scale * (codes - zero), m))
    assert np.all(cost(block, again, m) <= best * 1.002)


@pytest.mark.parametrize("zero", ["float", "packed"])
def test_rows_that_cannot_be_refitted_keep_their_grid(zero: Zero) -> None:
    block = torch.zeros(2, 8)
    block[1] = 0.5
    grid = AffineGrid.fit(block, 2, "minmax", zero)
    dense = torch.stack([grid.nearest(j, block[:, j]) for j in range(8)], dim=1)
    assert torch.equal(dense, block) or zero == "packed"
    refitted, again = grid.refit(block, dense, torch.eye(8))
    assert again.isfinite().all()
    assert (again - block).abs().max() < 1e-3
    assert bool((refitted.scale >= 0).all())
