"""The shared loop over columns: what it must keep, whatever grid takes part."""

import itertools
from collections.abc import Callable
from typing import Self

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.affinegrid import AffineGrid
from qdc.numerics.binarygrid import BinaryGrid
from qdc.numerics.columns import (
    Metric,
    block_cost,
    block_metric,
    column_feedback,
    coordinate_sweeps,
    quantize_block,
)
from qdc.numerics.components import dense as write_out
from qdc.numerics.factor import factorize
from qdc.numerics.grids import Grid
from qdc.numerics.multibinary import fit

MakeGrid = Callable[[Tensor], Grid]


def affine(block: Tensor) -> Grid:
    return AffineGrid.fit(block, 2, "clip")


def packed(block: Tensor) -> Grid:
    return AffineGrid.fit(block, 2, "clip", "packed")


def binary(block: Tensor) -> Grid:
    return BinaryGrid(fit(block, 2, torch.ones_like(block))[0])


GRIDS: list[MakeGrid] = [affine, packed, binary]


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def triangle(columns: int, seed: int = 0, rank: int = 4) -> Tensor:
    """The factor of a damped moment whose inputs share ``rank`` causes."""
    inputs = noise(4 * columns, rank, seed) @ noise(rank, columns, seed + 1)
    inputs = inputs + 0.5 * noise(4 * columns, columns, seed + 2)
    return factorize(inputs.T @ inputs / len(inputs), 0.01).upper


def plain(block: Tensor, grid: Grid) -> Tensor:
    return torch.stack([grid.nearest(j, block[:, j]) for j in range(block.shape[1])], dim=1)


def exact_cost(block: Tensor, dense: Tensor, upper: Tensor) -> float:
    """tr(E M E^T) with M the inverse of U^T U, in fp64."""
    m = np.linalg.inv((upper.double().T @ upper.double()).numpy())
    error = (block - dense).double().numpy()
    return float(np.trace(error @ m @ error.T))


def on_levels(dense: Tensor, grid: Grid) -> bool:
    return torch.equal(plain(dense, grid), dense)


@pytest.mark.parametrize("make", GRIDS)
def test_independent_inputs_are_rounded_plainly(make: MakeGrid) -> None:
    block = noise(9, 16)
    for by_activation in (False, True):
        scales = torch.linspace(0.5, 2, 16)
        metric = block_metric(torch.diag(scales), by_activation=by_activation)
        grid = make(block)
        assert torch.equal(column_feedback(block, metric, grid), plain(block, grid))
        swept = coordinate_sweeps(block, plain(block, grid), metric, grid, 2)
        assert torch.equal(swept, plain(block, grid))


@pytest.mark.parametrize("make", GRIDS)
@pytest.mark.parametrize("by_activation", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_errors_add_up_to_the_cost(make: MakeGrid, by_activation: bool, seed: int) -> None:
    block, upper = noise(6, 24, seed), triangle(24, seed)
    metric = block_metric(upper, by_activation=by_activation)
    grid = make(block)
    dense = column_feedback(block, metric, grid)
    # Err of each column by hand: what was to be rounded, minus its level, over the diagonal
    error = (block - dense)[:, metric.order].double()
    scaled = torch.linalg.solve_triangular(metric.upper.double(), error, upper=True, left=False)
    total = exact_cost(block, dense, upper)
    assert float(scaled.square().sum()) == pytest.approx(total, rel=1e-3)
    assert block_cost(block, dense, metric) == pytest.approx(total, rel=1e-3)
    # and each column was rounded to the level nearest to what it saw
    diagonal = metric.upper.double().diagonal()
    seen = dense[:, metric.order].double() + scaled * diagonal
    for place, column in enumerate(metric.order.tolist()):
        again = grid.nearest(column, seen[:, place].float())
        off = (again - dense[:, column]).abs()
        gap = (again - seen[:, place]).abs() - (dense[:, column] - seen[:, place]).abs()
        assert bool(((off == 0) | (gap.abs() < 1e-4)).all())


@given(seed=st.integers(0, 10_000), columns=st.integers(1, 20), by_activation=st.booleans())
@settings(max_examples=25, deadline=None)
def test_the_order_is_a_permutation_that_changes_no_metric(
    seed: int, columns: int, by_activation: bool
) -> None:
    upper = triangle(columns, seed)
    metric = block_metric(upper, by_activation=by_activation)
    assert sorted(metric.order.tolist()) == list(range(columns))
    inverse = (upper.double().T @ upper.double())[metric.order][:, metric.order]
    gram = metric.upper.double().T @ metric.upper.double()
    torch.testing.assert_close(gram, inverse, rtol=1e-3, atol=1e-5 * float(inverse.abs().max()))
    assert torch.equal(metric.upper, metric.upper.triu())
    diagonal = metric.full.diagonal()[metric.order]
    if by_activation:
        assert bool((diagonal[1:] <= diagonal[:-1]).all())
    else:
        assert metric.order.tolist() == list(range(columns))


@pytest.mark.parametrize("make", GRIDS)
def test_an_order_by_activation_leaves_codes_in_their_columns(make: MakeGrid) -> None:
    block, upper = noise(8, 24), triangle(24)
    grid = make(block)
    dense = column_feedback(block, block_metric(upper, by_activation=True), grid)
    assert on_levels(dense, grid)
    assert (dense - block).abs().mean() < (dense.roll(1, 1) - block).abs().mean()


@pytest.mark.parametrize("make", GRIDS)
def test_feedback_beats_plain_rounding_in_the_mean(make: MakeGrid) -> None:
    gains = []
    for seed in range(8):
        block, upper = noise(16, 24, seed), triangle(24, seed)
        grid = make(block)
        dense = column_feedback(block, block_metric(upper), grid)
        assert on_levels(dense, grid)
        rounded = exact_cost(block, plain(block, grid), upper)
        gains.append(exact_cost(block, dense, upper) / rounded)
    assert np.mean(gains) < 0.7
    assert max(gains) < 1


@pytest.mark.parametrize("make", GRIDS)
@pytest.mark.parametrize("seed", range(4))
def test_sweeps_never_raise_the_cost(make: MakeGrid, seed: int) -> None:
    block, upper = noise(10, 24, seed), triangle(24, seed)
    metric = block_metric(upper, by_activation=bool(seed % 2))
    grid = make(block)
    for start in (plain(block, grid), column_feedback(block, metric, grid)):
        costs = [exact_cost(block, start, upper)]
        for sweeps in (1, 2, 3, 8):
            dense = coordinate_sweeps(block, start, metric, grid, sweeps)
            assert on_levels(dense, grid)
            costs.append(exact_cost(block, dense, upper))
        assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(costs))
    rounded = exact_cost(block, plain(block, grid), upper)
    swept = coordinate_sweeps(block, plain(block, grid), metric, grid, 3)
    assert exact_cost(block, swept, upper) < 0.9 * rounded


def test_sweeps_end_where_no_single_move_helps_and_near_the_optimum() -> None:
    block, upper = noise(4, 5), triangle(5, rank=2)
    metric, grid = block_metric(upper), AffineGrid.fit(block, 1, "clip")
    dense = coordinate_sweeps(block, column_feedback(block, metric, grid), metric, grid, 20)
    levels = torch.stack([grid.minimum, grid.minimum + grid.scale], dim=1)
    best = torch.empty(4)
    for i in range(4):
        choices = torch.tensor(list(itertools.product(levels[i].tolist(), repeat=5)))
        error = choices - block[i]
        best[i] = ((error @ metric.full) * error).sum(1).min()
        for j, level in itertools.product(range(5), levels[i].tolist()):
            moved = dense[i : i + 1].clone()
            moved[0, j] = level
            here, there = (
                block_cost(block[i : i + 1], d, metric) for d in (dense[i : i + 1], moved)
            )
            assert there >= here * (1 - 1e-5)
    error = dense - block
    found = ((error @ metric.full) * error).sum(1)
    assert bool((found >= best * (1 - 1e-5)).all())
    assert float(found.sum()) < 1.5 * float(best.sum())


@pytest.mark.parametrize("make", GRIDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_best_candidate_is_kept(make: MakeGrid, seed: int) -> None:
    block, metric = noise(10, 24, seed), block_metric(triangle(24, seed))
    grid, gains = make(block), list[float]()
    kept, dense = quantize_block(
        block, plain(block, grid), grid, metric, rounds=3, sweeps=1, gains=gains
    )
    assert len(gains) == 1 + 4 + 3
    assert block_cost(block, dense, metric) == min(gains) < gains[0]
    assert on_levels(dense, kept)
    alone = quantize_block(block, None, grid, metric)[1]
    assert torch.equal(alone, column_feedback(block, metric, grid))


@pytest.mark.parametrize("make", GRIDS)
@pytest.mark.parametrize("seed", range(3))
def test_rounds_and_sweeps_gain_on_feedback_alone(make: MakeGrid, seed: int) -> None:
    block, metric = noise(16, 24, seed), block_metric(triangle(24, seed))
    costs = [
        block_cost(
            block,
            quantize_block(block, None, make(block), metric, sweeps=sweeps, rounds=rounds)[1],
            metric,
        )
        for sweeps, rounds in ((0, 0), (3, 0), (3, 3))
    ]
    assert costs[2] < costs[1] < costs[0]


@pytest.mark.parametrize("make", GRIDS)
def test_blocks_and_levels_are_left_alone(make: MakeGrid) -> None:
    block, metric = noise(5, 16), block_metric(triangle(16))
    before, full = block.clone(), metric.full.clone()
    grid = make(block)
    levels = plain(block, grid)
    start = levels.clone()
    quantize_block(block, start, grid, metric, rounds=2, sweeps=2)
    assert torch.equal(block, before)
    assert torch.equal(start, levels)
    assert torch.equal(metric.full, full)
    assert torch.equal(plain(block, grid), levels)


def test_rows_do_not_see_each_other() -> None:
    block, metric = noise(8, 16), block_metric(triangle(16))
    rows = torch.tensor([5, 0, 3])
    whole = column_feedback(block, metric, affine(block))
    part = column_feedback(block[rows], metric, affine(block[rows]))
    assert torch.equal(part, whole[rows])


def test_the_binary_grid_writes_its_levels_as_the_codec_does() -> None:
    block = noise(6, 16)
    grid = BinaryGrid(fit(block, 3, torch.ones_like(block))[0])
    dense = plain(block, grid)
    assert torch.equal(write_out(grid.encode(dense)), dense)


def test_the_metric_is_the_schur_complement() -> None:
    inputs = noise(200, 12) @ noise(12, 12, 1)
    moment = (inputs.T @ inputs / 200).double()
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(12)
    upper = factorize(moment.float(), 0.01).upper
    metric: Metric = block_metric(upper[:5, :5])
    head, tail, mixed = damped[:5, :5], damped[5:, 5:], damped[:5, 5:]
    schur = head - mixed @ torch.linalg.solve(tail, mixed.T)
    torch.testing.assert_close(metric.full.double(), schur, rtol=1e-3, atol=1e-4)


def test_a_refit_that_overflows_leaves_what_was_found() -> None:
    class Overflowing(AffineGrid):
        def refit(self, block: Tensor, dense: Tensor, metric: Tensor) -> tuple[Self, Tensor]:
            raise OverflowError

    block, metric = noise(6, 16), block_metric(triangle(16))
    usual = AffineGrid.fit(block, 2, "clip")
    overflowing = Overflowing.fit(block, 2, "clip")
    kept, dense = quantize_block(block, None, overflowing, metric, rounds=2)
    assert kept is overflowing
    assert torch.equal(dense, column_feedback(block, metric, usual))


class Signs(Grid):
    """Levels +1 and -1, and nothing to refit."""

    def nearest(self, column: int, target: Tensor) -> Tensor:
        return torch.where(target < 0, -1.0, 1.0)


def test_a_grid_may_leave_refit_out() -> None:
    block, upper = noise(6, 16), triangle(16)
    metric = block_metric(upper)
    _, best = quantize_block(block, None, Signs(), metric, sweeps=2)
    assert exact_cost(block, best, upper) < exact_cost(block, plain(block, Signs()), upper)
    with pytest.raises(NotImplementedError, match=r"Signs has no refit: .* ask for rounds=0"):
        quantize_block(block, None, Signs(), metric, rounds=1)
