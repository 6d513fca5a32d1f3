import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.multibinary import (
    Components,
    canonical,
    dense,
    fit,
    greedy_start,
    refit_scales,
    search_signs,
    stored,
    weighted_loss,
)

ORDERS = (1, 2, 3, 4)


def random_block(seed: int = 0, rows: int = 12, columns: int = 9) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def random_weight(seed: int = 0, rows: int = 12, columns: int = 9) -> Tensor:
    chosen = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) < 0.2
    return torch.where(chosen, 3.0, 1.0)


def random_components(order: int, seed: int = 0, rows: int = 12, columns: int = 9) -> Components:
    generator = torch.Generator().manual_seed(seed)
    signs = torch.randint(0, 2, (order, rows, columns), generator=generator) * 2 - 1
    return Components(
        signs.to(torch.int8),
        torch.randn(order, rows, generator=generator),
        torch.randn(order, columns, generator=generator),
    )


def relative(block: Tensor, c: Components) -> float:
    return ((block - dense(c)).square().sum() / block.square().sum()).item()


@pytest.mark.parametrize("order", ORDERS)
def test_dense_is_bit_exact_fp32_in_ascending_order(order: int) -> None:
    c = random_components(order)
    found = dense(c)
    for i, j in itertools.product(range(12), range(9)):
        total = np.float32(0)
        for k in range(order):
            product = np.float32(c.row_scale[k, i].item()) * np.float32(c.col_scale[k, j].item())
            total = total + product * np.float32(c.signs[k, i, j].item())
        assert found[i, j].item() == float(total)


@pytest.mark.parametrize("order", ORDERS)
def test_greedy_start_against_loops(order: int) -> None:
    block = random_block()
    c = greedy_start(block, order)
    rest = block.double().numpy().copy()
    for k in range(order):
        a = [sum(abs(x) for x in row) / 9 for row in rest]
        columns = [sum(abs(rest[i, j]) / a[i] for i in range(12)) / 12 for j in range(9)]
        np.testing.assert_allclose(c.row_scale[k].numpy(), a, rtol=1e-4)
        np.testing.assert_allclose(c.col_scale[k].numpy(), columns, rtol=1e-4)
        sign = np.where(rest >= 0, 1, -1)
        np.testing.assert_array_equal(c.signs[k].numpy(), sign)
        rest -= np.outer(a, columns) * sign


def test_zero_counts_as_positive_and_zero_rows_stay_zero() -> None:
    block = torch.tensor([[0.0, -0.0, 0.0], [1.0, 0.0, -1.0]])
    c = greedy_start(block, 1)
    assert c.signs.tolist() == [[[1, 1, 1], [1, 1, -1]]]
    assert dense(c)[0].tolist() == [0, 0, 0]


def reference_refit(
    block: Tensor, c: Components, weight: Tensor
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Scalar formulas in loops; also the loss after each half-step."""
    w, lam = block.double().numpy(), weight.double().numpy()
    a, col = c.row_scale.double().numpy().copy(), c.col_scale.double().numpy().copy()
    b = c.signs.double().numpy()
    order, (rows, columns) = len(a), w.shape

    def value(i: int, j: int, skip: int = -1) -> float:
        return float(sum(a[k, i] * col[k, j] * b[k, i, j] for k in range(order) if k != skip))

    def loss() -> float:
        cells = itertools.product(range(rows), range(columns))
        return float(sum(lam[i, j] * (w[i, j] - value(i, j)) ** 2 for i, j in cells))

    losses = [loss()]
    for k in range(order):
        rest = np.array([[w[i, j] - value(i, j, k) for j in range(columns)] for i in range(rows)])
        for i in range(rows):
            above = sum(lam[i, j] * rest[i, j] * b[k, i, j] * col[k, j] for j in range(columns))
            a[k, i] = above / sum(lam[i, j] * col[k, j] ** 2 for j in range(columns))
        losses.append(loss())
        for j in range(columns):
            above = sum(lam[i, j] * rest[i, j] * b[k, i, j] * a[k, i] for i in range(rows))
            col[k, j] = above / sum(lam[i, j] * a[k, i] ** 2 for i in range(rows))
        losses.append(loss())
    return a, col, losses


@pytest.mark.parametrize("order", ORDERS)
def test_refit_against_loops_and_no_half_step_raises_the_loss(order: int) -> None:
    block, weight = random_block(1, 6, 5), random_weight(1, 6, 5)
    start = greedy_start(block, order)
    a, col, losses = reference_refit(block, start, weight)
    found = refit_scales(block, start, weight)
    np.testing.assert_allclose(found.row_scale.numpy(), a, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(found.col_scale.numpy(), col, rtol=1e-3, atol=1e-4)
    assert torch.equal(found.signs, start.signs)
    assert all(after <= before + 1e-9 for before, after in itertools.pairwise(losses))
    assert weighted_loss(block, found, weight).item() == pytest.approx(losses[-1], rel=1e-4)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("start", ["greedy", "random"])
def test_neither_refit_nor_search_raises_the_loss(order: int, start: str) -> None:
    block, weight = random_block(2), random_weight(2)
    c = greedy_start(block, order) if start == "greedy" else random_components(order, 2)
    loss = weighted_loss(block, c, weight).item()
    first = loss
    for half_step in ("refit", "search") * 6:
        c = refit_scales(block, c, weight) if half_step == "refit" else search_signs(block, c)
        after = weighted_loss(block, c, weight).item()
        assert after <= loss * (1 + 1e-6)
        loss = after
    assert loss < 0.99 * first


def test_refit_leaves_no_better_column_scale() -> None:
    block, weight = random_block(3), random_weight(3)
    c = refit_scales(block, greedy_start(block, 2), weight)
    best = weighted_loss(block, c, weight).item()
    for j, factor in itertools.product(range(9), (0.9, 1.1)):
        col_scale = c.col_scale.clone()
        col_scale[1, j] *= factor  # the scale that the pass sets last
        assert weighted_loss(block, c._replace(col_scale=col_scale), weight).item() > best


def test_refit_does_not_modify_its_input() -> None:
    block, c = random_block(), random_components(3)
    copies = [part.clone() for part in c]
    refit_scales(block, c, random_weight())
    assert all(torch.equal(part, copy) for part, copy in zip(c, copies, strict=True))


def test_rows_without_weight_are_left_out() -> None:
    block, weight = random_block(4), torch.ones(12, 9)
    weight[5] = 0
    c = refit_scales(block, greedy_start(block, 2), weight)
    assert c.row_scale.isfinite().all()
    assert c.row_scale[:, 5].tolist() == [0, 0]
    keep = [i for i in range(12) if i != 5]
    shorter = greedy_start(block, 2)
    shorter = Components(shorter.signs[:, keep], shorter.row_scale[:, keep], shorter.col_scale)
    torch.testing.assert_close(
        refit_scales(block[keep], shorter, weight[keep]).col_scale, c.col_scale
    )


@pytest.mark.parametrize("order", ORDERS)
def test_search_finds_the_best_pattern_of_each_weight(order: int) -> None:
    block, c = random_block(5), random_components(order, 5)
    found = search_signs(block, c)
    for i, j in itertools.product(range(12), range(9)):
        terms = [(c.row_scale[k, i] * c.col_scale[k, j]).item() for k in range(order)]
        best = min(
            itertools.product((1, -1), repeat=order),
            key=lambda signs: abs(
                block[i, j].item() - sum(s * t for s, t in zip(signs, terms, strict=True))
            ),
        )
        assert tuple(found.signs[:, i, j].tolist()) == best


def test_ties_go_to_the_first_pattern() -> None:
    zero = Components(
        -torch.ones(2, 1, 2, dtype=torch.int8), torch.ones(2, 1), torch.tensor([[1.0, 0.0]] * 2)
    )
    # Column 0: +- and -+ both give 0, the first one flips component 0; column 1: all are equal.
    assert search_signs(torch.zeros(1, 2), zero).signs.tolist() == [[[-1, 1]], [[1, 1]]]


@pytest.mark.parametrize("order", ORDERS)
def test_canonical_changes_the_form_only(order: int) -> None:
    c = random_components(order, 6)
    found = canonical(c)
    torch.testing.assert_close(dense(found), dense(c))
    assert (found.row_scale >= 0).all()
    assert (found.col_scale >= 0).all()
    torch.testing.assert_close(found.col_scale.mean(dim=1), torch.ones(order))
    means = found.row_scale.mean(dim=1)
    assert means.tolist() == sorted(means.tolist(), reverse=True)
    assert found.signs.dtype == torch.int8
    assert (found.signs.abs() == 1).all()


def test_canonical_accepts_dead_components() -> None:
    c = random_components(3, 7)
    c.col_scale[0] = 0
    found = canonical(c)
    assert not found.row_scale[2].any()
    assert not found.col_scale[2].any()
    torch.testing.assert_close(dense(found), dense(c))


def test_stored_scales_fit_fp16() -> None:
    c = random_components(3, 8)
    found = stored(c)
    expected = canonical(c)
    for rounded, exact in (
        (found.row_scale, expected.row_scale),
        (found.col_scale, expected.col_scale),
    ):
        assert rounded.dtype == torch.float32
        assert torch.equal(rounded.half().float(), rounded)
        torch.testing.assert_close(rounded, exact, rtol=2**-11, atol=2**-25)
    for k in range(3):  # products of stored scales are exact in fp32
        product = torch.outer(found.row_scale[k], found.col_scale[k])
        wide = torch.outer(found.row_scale[k].double(), found.col_scale[k].double())
        assert torch.equal(product.double(), wide)


def test_stored_refuses_overflow() -> None:
    c = random_components(2, 8)
    with pytest.raises(OverflowError, match="fp16"):
        stored(c._replace(row_scale=c.row_scale * 1e6))


@pytest.mark.parametrize("order", ORDERS)
def test_fit_never_raises_the_loss_and_returns_what_is_stored(order: int) -> None:
    block, weight = random_block(9, 40, 32), random_weight(9, 40, 32)
    c, losses = fit(block, order, weight, tolerance=0)
    start = weighted_loss(block, greedy_start(block, order), weight).item()
    assert losses[0] == pytest.approx(start)
    assert all(after <= before for before, after in itertools.pairwise(losses))
    assert losses[-1] < losses[0]
    assert weighted_loss(block, c, weight).item() == pytest.approx(losses[-1], rel=0.01)
    assert torch.equal(c.row_scale.half().float(), c.row_scale)
    assert torch.equal(c.col_scale.half().float(), c.col_scale)
    assert (c.row_scale >= 0).all()
    assert (c.col_scale >= 0).all()
    # Signs fit the rounded scales, not those before rounding.
    assert torch.equal(c.signs, search_signs(block, c).signs)


def test_tolerance_stops_early_and_sweeps_bound() -> None:
    block, weight = random_block(10, 40, 32), torch.ones(40, 32)
    assert len(fit(block, 2, weight, sweeps=4, tolerance=0)[1]) == 5
    assert len(fit(block, 2, weight, sweeps=0)[1]) == 1
    losses = fit(block, 2, weight, sweeps=15, tolerance=0.01)[1]
    assert 2 < len(losses) < 16
    changes = [1 - after / before for before, after in itertools.pairwise(losses)]
    assert min(changes[:-1]) >= 0.01 >= changes[-1]


@pytest.mark.parametrize("dead", [False, True])
def test_order_one_is_exact_on_a_rank_one_magnitude(dead: bool) -> None:
    rows, columns = torch.tensor([1.0, 2.0, 0.5, 4.0]), torch.tensor([0.5, 1.0, 1.5])
    if dead:
        rows[1], columns[0] = 0.0, 0.0
    block = torch.outer(rows, columns) * random_components(1, 11, 4, 3).signs[0]
    c, losses = fit(block, 1, torch.ones(4, 3))
    assert losses[-1] < 1e-10
    torch.testing.assert_close(dense(c), block, rtol=2e-3, atol=1e-6)


def test_error_falls_with_the_order() -> None:
    block, weight = random_block(12, 48, 32), torch.ones(48, 32)
    errors = [relative(block, fit(block, order, weight)[0]) for order in ORDERS]
    assert all(after < 0.6 * before for before, after in itertools.pairwise(errors))
    assert 0.25 < errors[0] < 0.4
    assert errors[1] < 0.13


@pytest.mark.parametrize("order", ORDERS)
def test_permuting_rows_or_columns_permutes_the_fit(order: int) -> None:
    block, weight = random_block(13), random_weight(13)
    found = dense(fit(block, order, weight)[0])
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    columns = torch.randperm(9, generator=torch.Generator().manual_seed(2))
    by_row = dense(fit(block[rows], order, weight[rows])[0])
    by_column = dense(fit(block[:, columns], order, weight[:, columns])[0])
    # Another order of summation may round a scale to the neighbouring fp16 number.
    torch.testing.assert_close(by_row, found[rows], rtol=0, atol=4e-3)
    torch.testing.assert_close(by_column, found[:, columns], rtol=0, atol=4e-3)


@pytest.mark.parametrize("order", ORDERS)
def test_negating_the_block_negates_the_fit(order: int) -> None:
    block, weight = random_block(14), random_weight(14)
    assert torch.equal(dense(fit(-block, order, weight)[0]), -dense(fit(block, order, weight)[0]))


@pytest.mark.parametrize("order", ORDERS)
def test_equal_weights_do_not_matter_but_outlier_weights_do(order: int) -> None:
    block = random_block(15, 40, 32)
    plain = fit(block, order, torch.ones(40, 32))[0]
    scaled = fit(block, order, torch.full((40, 32), 4.0))[0]
    assert all(torch.equal(x, y) for x, y in zip(plain, scaled, strict=True))
    weight = torch.where(random_weight(15, 40, 32) > 1, 30.0, 1.0)
    weighted = fit(block, order, weight)[0]
    assert weighted_loss(block, weighted, weight) < weighted_loss(block, plain, weight)
    chosen = weight > 1
    error, before = (block - dense(weighted)).square(), (block - dense(plain)).square()
    assert error[chosen].sum() < 0.8 * before[chosen].sum()


@pytest.mark.parametrize("order", ORDERS)
def test_tiny_blocks_are_not_destroyed(order: int) -> None:
    block, weight = random_block(16, 40, 32), random_weight(16, 40, 32)
    c, losses = fit(block, order, weight)
    # Before rounding nothing depends on the scale (a power of two); an absolute epsilon would.
    for exponent in (-20, -40):
        tiny = block * 2.0**exponent
        if exponent == -20:
            found = fit(tiny, order, weight)[1]
            assert found == [pytest.approx(loss * 4.0**exponent, rel=1e-6) for loss in losses]
        start = greedy_start(block, order)
        small = refit_scales(tiny, greedy_start(tiny, order), weight)
        assert torch.equal(
            small.row_scale, refit_scales(block, start, weight).row_scale * 2.0**exponent
        )
    # fp16 row scales near 1e-6 are subnormal: a step is 6e-8, so the fit gets coarse, not lost.
    small_fit = fit(block * 1e-6, order, weight)[0]
    assert relative(block * 1e-6, small_fit) < relative(block, c) + 0.005


@pytest.mark.parametrize("order", ORDERS)
def test_a_block_of_zeros_stays_zero(order: int) -> None:
    c, losses = fit(torch.zeros(3, 5), order, torch.ones(3, 5))
    assert not dense(c).any()
    assert (c.signs == 1).all()
    assert set(losses) == {0.0}


def test_dead_columns_get_column_scale_zero() -> None:
    block = random_block(17)
    block[:, [2, 7]] = 0
    c, _ = fit(block, 1, torch.ones(12, 9))
    assert not c.col_scale[:, [2, 7]].any()
    assert not dense(c)[:, [2, 7]].any()


@pytest.mark.parametrize("order", [-1, 0, 5])
def test_refuses_other_orders(order: int) -> None:
    with pytest.raises(ValueError, match="order"):
        fit(random_block(), order, torch.ones(12, 9))
    with pytest.raises(ValueError, match="order"):
        greedy_start(random_block(), order)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_numbers_that_are_not_finite(bad: float) -> None:
    block = random_block()
    block[3, 3] = bad
    with pytest.raises(ValueError, match="NaN"):
        fit(block, 2, torch.ones(12, 9))
    with pytest.raises(ValueError, match="NaN"):
        fit(torch.ones(12, 9), 2, block)


def test_refuses_shapes_that_do_not_fit_and_overflow() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        fit(random_block(), 2, torch.ones(12, 1))
    with pytest.raises(ValueError, match="do not fit"):
        fit(torch.ones(0, 4), 2, torch.ones(0, 4))
    with pytest.raises(OverflowError, match="finite"):
        fit(random_block() * 1e6, 2, torch.ones(12, 9))
