"""Codes chosen weight by weight: against the definition, and against feedback along columns."""

import pytest
import torch
from torch import Tensor

from qdc.numerics import two_sided_block
from qdc.numerics.binarygrid import BinaryGrid, refit_columns, refit_rows_together
from qdc.numerics.columns import Metric, block_metric, column_feedback, quantize_block
from qdc.numerics.components import dense
from qdc.numerics.factor import factorize
from qdc.numerics.multibinary import fit
from qdc.numerics.two_sided_block import (
    RowMetric,
    quantize_two_sided,
    row_metric,
    two_sided_cost,
    two_sided_feedback,
    two_sided_sweep,
)
from tests.support.units import correlated_moment, noise

ROWS, COLUMNS = 24, 20
WEIGHT = noise(ROWS, COLUMNS)


def metrics(rows: int = ROWS, *, by_activation: bool = False) -> tuple[Metric, RowMetric]:
    upper = factorize(correlated_moment(COLUMNS), 0.01).upper
    found = row_metric(factorize(correlated_moment(rows, seed=1), 0.01).upper)
    return block_metric(upper, by_activation=by_activation), found


def grid_of(order: int = 2, weight: Tensor = WEIGHT) -> BinaryGrid:
    return BinaryGrid(fit(weight, order, torch.ones_like(weight))[0], 8)


def test_rows_hand_on_what_their_curvature_wants() -> None:
    _, rows = metrics()
    damped = correlated_moment(ROWS, seed=1)
    damped += 0.01 * damped.diagonal().mean() * torch.eye(ROWS)
    torch.testing.assert_close(rows.full, damped, rtol=1e-4, atol=1e-4)
    unit = torch.linalg.inv(torch.eye(ROWS, dtype=torch.float64) + rows.lower.double())
    middle = unit.T @ rows.full[rows.order][:, rows.order].double() @ unit
    sizes = rows.full.diagonal()[rows.order]
    assert torch.equal(sizes, sizes.sort(descending=True).values)
    assert not rows.lower.triu().any()
    torch.testing.assert_close(middle, middle.diagonal().diag(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("height", [7, 256])
@pytest.mark.parametrize("by_activation", [False, True])
def test_each_weight_is_rounded_where_errors_before_it_want_it(
    height: int, by_activation: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_sided_block, "HEIGHT", height)
    metric, rows = metrics(by_activation=by_activation)
    grid = grid_of()
    found = two_sided_feedback(WEIGHT, metric, rows, grid)
    error = (WEIGHT - found)[rows.order][:, metric.order].double()
    along = torch.linalg.inv(metric.upper.double()) * metric.upper.diagonal()
    down = torch.eye(ROWS) + rows.lower
    places = found.clone()
    places[rows.order[:, None], metric.order] += (down.double() @ error @ along).float()
    expected = torch.stack([grid.nearest(j, places[:, j]) for j in range(COLUMNS)], dim=1)
    assert torch.equal(found, expected)


def test_with_equal_outputs_it_is_feedback_along_columns() -> None:
    metric, _ = metrics()
    alike, grid = row_metric(torch.eye(ROWS)), grid_of()
    found = two_sided_feedback(WEIGHT, metric, alike, grid)
    assert torch.equal(found, column_feedback(WEIGHT, metric, grid))


@pytest.mark.parametrize("height", [7, 256])
def test_a_sweep_ends_where_no_weight_gains_by_moving(
    height: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(two_sided_block, "HEIGHT", height)
    metric, rows = metrics()
    grid = grid_of()
    now = two_sided_feedback(WEIGHT, metric, rows, grid)
    costs = [two_sided_cost(WEIGHT, now, metric, rows)]
    for _ in range(20):
        now = two_sided_sweep(WEIGHT, now, metric, rows, grid)
        costs.append(two_sided_cost(WEIGHT, now, metric, rows))
    assert costs[1] < costs[0]
    assert costs[-1] == costs[-2]
    for i, j in ((0, 0), (3, 17), (ROWS - 1, COLUMNS - 1)):
        for level in grid.levels[j, :, i]:
            moved = now.clone()
            moved[i, j] = level
            assert two_sided_cost(WEIGHT, moved, metric, rows) >= costs[-1] * (1 - 1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_single_weights_are_rounded_as_columns_are(order: int) -> None:
    grid = grid_of(order)
    rows, columns = torch.tensor([0, 5, 23, 5]), torch.tensor([3, 3, 0, 19])
    each = grid.nearest_each(rows, columns, WEIGHT[rows, columns])
    whole = torch.stack([grid.nearest(j, WEIGHT[:, j]) for j in range(COLUMNS)], dim=1)
    assert torch.equal(each, whole[rows, columns])


def test_scales_are_refitted_for_all_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdc.numerics.binarygrid.TOGETHER", 7)
    metric, rows = metrics()
    parts = grid_of().components

    def cost(row_scale: Tensor, col_scale: Tensor) -> Tensor:
        written = (row_scale[:, :, None] * col_scale[:, None, :] * parts.signs).sum(0)
        error = WEIGHT - written
        return (rows.full @ error @ metric.full * error).sum()

    before = cost(parts.row_scale, parts.col_scale)
    found = refit_rows_together(WEIGHT, parts, metric.full, rows.full)
    between = cost(found, parts.col_scale)
    columns = refit_columns(
        WEIGHT, parts._replace(row_scale=found), metric.full, rows=rows.full
    ).requires_grad_()
    after = cost(found, columns)
    assert before > between > after
    after.backward()  # type: ignore[no-untyped-call]
    assert columns.grad is not None
    assert float(columns.grad.abs().max()) < 1e-3 * float(after.detach())


def test_it_costs_less_than_feedback_along_columns() -> None:
    metric, rows = metrics()
    grid = grid_of()
    start = dense(grid.components)
    _, alike = quantize_block(WEIGHT, start, grid, metric, rounds=2, sweeps=1)
    costs = [two_sided_cost(WEIGHT, alike, metric, rows)]
    for options in ({}, {"rounds": 2}, {"rounds": 2, "sweeps": 1}):
        levels, found = quantize_two_sided(WEIGHT, start, grid, metric, rows, **options)
        torch.testing.assert_close(dense(levels.encode(found)), found)
        costs.append(two_sided_cost(WEIGHT, found, metric, rows))
    assert costs[3] < costs[2] < costs[1] < costs[0]
    assert costs[3] < 0.8 * costs[0], costs
