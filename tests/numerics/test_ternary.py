"""Ternary levels: the fit, closed forms against least squares, refits, reordering."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.asymmetry import asymmetry_term
from qdc.numerics.blocks import block_slices
from qdc.numerics.columns import block_cost, block_metric
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import Compensation, quantize_blocks
from qdc.numerics.reordering import Drift, quantize_reordered, similar_columns
from qdc.numerics.ternary import Ternary, best_levels, fit_ternary
from qdc.numerics.ternarygrid import TernaryGrid
from tests.support.units import correlated_moment, noise


def squared(block: Tensor, fitted: Ternary) -> Tensor:
    """Squared error of each row, f64[n]."""
    dense = fitted.scale[:, None] * fitted.codes + fitted.shift[:, None]
    return (block - dense).double().square().sum(1)


@pytest.mark.parametrize("update", ["joint", "alternating"])
@pytest.mark.parametrize("start", ["scale", "threshold"])
def test_the_error_falls_until_no_code_changes(update: Any, start: Any) -> None:
    block = noise(40, 96) + noise(40, 1, 5) / 20
    fits = [fit_ternary(block, count, start, update) for count in range(40)]
    errors = torch.stack([squared(block, fitted) for fitted in fits])
    assert bool((errors.diff(dim=0) <= 1e-6 * errors[0]).all())
    assert fits[-1].iterations < 39
    assert errors[-1].sum() < errors[0].sum()
    before = fit_ternary(block, 100, start, update, "previous")
    count = fits[-1].iterations
    assert before.iterations == count - 1
    assert torch.equal(before.scale, fits[count - 1].scale)


def test_a_row_as_the_release_iterates_it() -> None:
    block = noise(1, 24, 3).double().numpy()[0]
    shift = block.mean()
    scale = 0.75 * np.abs(block - shift).mean()
    states = []
    while True:
        codes = np.clip(np.round((block - shift) / scale), -1, 1)
        states.append((codes, scale, shift))
        if len(states) > 1 and (codes == states[-2][0]).all():
            break
        shift = (block - scale * codes).mean()
        scale = (codes * (block - shift)).sum() / np.abs(codes).sum()
    found = fit_ternary(torch.tensor(block)[None].float(), update="alternating", keep="previous")
    codes, scale, shift = states[-2]
    np.testing.assert_array_equal(found.codes[0].numpy(), codes)
    np.testing.assert_allclose([found.scale[0], found.shift[0]], [scale, shift], rtol=1e-5)


def test_three_levels_on_gaussian_weights() -> None:
    """related-systems.md A11: 0.183 of the energy at 128 columns."""
    weight = torch.randn(256, 1024, generator=torch.Generator().manual_seed(0))
    error = 0.0
    for part in block_slices(1024):
        block = weight[:, part]
        fitted = fit_ternary(block)
        grid = TernaryGrid(fitted.scale, fitted.shift)
        error += float((block - grid.dense(fitted.codes)).square().sum())
    assert error / float(weight.square().sum()) == pytest.approx(0.183, rel=0.03)


def test_the_fit_is_near_the_best_of_all() -> None:
    block = noise(6, 7, 2)
    best = np.full(6, np.inf)
    for codes in itertools.product((-1.0, 0.0, 1.0), repeat=7):
        system = np.stack([codes, np.ones(7)], axis=1)
        answer = np.linalg.lstsq(system, block.numpy().T, rcond=None)[0]
        best = np.minimum(best, ((system @ answer - block.numpy().T) ** 2).sum(0))
    found = squared(block, fit_ternary(block)).numpy()
    assert (found >= best - 1e-6).all()
    assert found.sum() < 1.5 * best.sum()


@pytest.mark.parametrize("seed", range(3))
def test_aligned_levels_are_the_least_squares_of_each_row(seed: int) -> None:
    block, moment = noise(5, 20, seed).double(), correlated_moment(20, seed).double()
    codes = fit_ternary(block.float()).codes
    levels = best_levels(block, codes, moment)
    root = np.linalg.cholesky(moment.numpy()).T
    for row in range(5):
        system = root @ np.stack([codes[row].numpy(), np.ones(20)], axis=1)
        answer = np.linalg.lstsq(system, root @ block[row].numpy(), rcond=None)[0]
        np.testing.assert_allclose([levels.scale[row], levels.shift[row]], answer, rtol=1e-8)
    scaled = best_levels(block, codes, 7 * moment)
    torch.testing.assert_close(scaled.scale, levels.scale)
    assert bool(levels.solvable.all())


def test_aligned_to_white_inputs_the_fit_stays() -> None:
    block = noise(12, 64)
    fitted = fit_ternary(block)
    levels = best_levels(block, fitted.codes, torch.eye(64))
    torch.testing.assert_close(levels.scale.float(), fitted.scale)
    torch.testing.assert_close(levels.shift.float(), fitted.shift, rtol=1e-4, atol=1e-6)


def test_levels_that_codes_do_not_tell_apart_are_not_solved() -> None:
    codes = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    block = torch.tensor([[1.0, 2.0, 3.0]]).expand(4, 3)
    levels = best_levels(block, codes, torch.eye(3))
    assert levels.solvable.tolist() == [False, False, True, True]
    upright, turned = levels.upright(codes)
    assert bool((upright.scale[2:] > 0).all())
    assert torch.equal(turned[2], turned[3])
    grid = TernaryGrid(torch.ones(4), torch.zeros(4))
    solved, rows = grid.solve(upright)
    assert rows.tolist() == [False, False, True, True]
    assert solved.scale.tolist() == [1, 1, 1, 1]
    assert solved.shift.tolist() == [0, 0, 2, 2]


def test_every_value_on_the_levels_is_encoded_as_itself() -> None:
    scale = torch.tensor([0.0, 2.0**-24, 0.3, 0.3, 1e-4, 2.0**-15])
    shift = torch.tensor([0.3, 0.1, 0.0, -7.0, 60000.0, 511.5])
    grid = TernaryGrid(scale, shift)
    dense = grid.dense(torch.tensor([[-1.0, 0.0, 1.0]]).expand(6, 3))
    assert torch.equal(grid.dense(grid.encode(dense)), dense)
    for column in range(3):
        assert torch.equal(grid.nearest(column, dense[:, column]), dense[:, column])
    assert torch.equal(grid.encode(dense)[2:4], torch.tensor([[-1.0, 0.0, 1.0]]).expand(2, 3))


@pytest.mark.parametrize("seed", range(3))
def test_a_refit_costs_no_row_more(seed: int) -> None:
    block, moment = noise(20, 48, seed), correlated_moment(48, seed)
    metric = block_metric(factorize(moment).upper)
    fitted = fit_ternary(block)
    grid = TernaryGrid(fitted.scale, fitted.shift)
    dense = grid.dense(fitted.codes)
    refitted, again = grid.refit(block, dense, metric.full)
    for row in range(20):
        one = slice(row, row + 1)
        before, after = (block_cost(block[one], d[one], metric) for d in (dense, again))
        assert after <= before
    assert block_cost(block, again, metric) < 0.9 * block_cost(block, dense, metric)
    assert torch.equal(refitted.dense(refitted.encode(again)), again)


def test_levels_beyond_fp16_are_refused() -> None:
    with pytest.raises(OverflowError, match="shift is not finite"):
        TernaryGrid(torch.ones(1), torch.tensor([1e5]))


def test_similar_columns_stand_together() -> None:
    direction, other = noise(1, 30)[0], noise(1, 30, 1)[0]
    columns = [other, 3 * direction, torch.zeros(30), direction, -other, 0.1 * direction, direction]
    weight = torch.stack(columns, dim=1)
    assert similar_columns(weight, 4).tolist() == [1, 3, 5, 6]
    assert similar_columns(weight, 9).tolist() == list(range(7))
    assert similar_columns(torch.zeros(3, 4), 2).tolist() == [0, 1]


def rounded(block: Tensor) -> Tensor:
    return (block * 4).round() / 4


@pytest.mark.parametrize("compensation", ["exact", "diag", "none"])
@pytest.mark.parametrize("inside", [True, False, None])
@pytest.mark.parametrize("columns", [40, 48])
def test_blocks_in_a_chosen_order_are_blocks_of_a_permuted_layer(
    compensation: Compensation, inside: bool | None, columns: int
) -> None:
    """The factor carried along is that of the permuted moment, and so is GPTAQ's term."""
    weight, moment = 3 * noise(6, columns), correlated_moment(columns)
    cross = correlated_moment(columns, 1) / 9 + torch.randn(
        columns, columns, generator=torch.Generator().manual_seed(2)
    )
    upper = factorize(moment).upper
    seen: list[Tensor] = []

    def quantize(block: Tensor, places: Tensor, triangle: Tensor) -> Tensor:
        seen.append(triangle)
        return rounded(block)

    drift = None if inside is None else Drift(cross, 0.25, inside)
    order, dense = quantize_reordered(weight, upper, 16, compensation, quantize, drift)
    assert sorted(order.tolist()) == list(range(columns)) != order.tolist()

    wide = upper.double()
    inverse = (wide.T @ wide)[order][:, order]
    permuted = torch.linalg.cholesky(inverse, upper=True)
    slices = block_slices(columns, 16)
    term = None
    if drift is not None:
        term = asymmetry_term(cross.double()[order][:, order], permuted, 0.25).float()
        if not inside:
            for part in slices:
                term[part, part] = 0
    expected = quantize_blocks(
        weight[:, order],
        permuted.float(),
        slices,
        compensation,
        lambda index, block: rounded(block),
        term,
    )
    for part, triangle in zip(slices, seen, strict=True):
        torch.testing.assert_close(triangle.double(), permuted[part, part], rtol=1e-5, atol=1e-6)
    # a code may differ where a weight stands between two levels
    assert float((dense == expected).double().mean()) > 0.98
