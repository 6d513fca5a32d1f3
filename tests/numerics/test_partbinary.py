"""Fits of binary parts: closed forms by hand, steps that never raise the error, Gaussian errors."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from qdc.numerics.components import dense
from qdc.numerics.partbinary import (
    PartFit,
    alternate,
    metric_refit,
    residual,
    residual_error,
    row_column,
    row_column_start,
)
from tests.support.units import correlated_moment, noise


def written(fit: PartFit) -> Tensor:
    return dense(fit.components) + fit.mean[:, None]


def error(values: Tensor, mask: Tensor, fit: PartFit) -> float:
    return float(((values - written(fit)) * mask).square().sum())


def half_mask(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    mask = (torch.rand(rows, columns, generator=generator) < 0.5).float()
    mask[0] = 0  # a row that has nothing in this part
    return mask


@pytest.mark.parametrize("order", [1, 2])
def test_residual_binarisation_is_closed_form(order: int) -> None:
    values, mask = noise(7, 40) + 0.05, half_mask(7, 40)
    fit, lost = residual(values, mask, order)
    assert float(lost) == pytest.approx(error(values, mask, fit), rel=1e-4)
    assert float(residual_error(values, mask, order)) == pytest.approx(float(lost), rel=1e-4)
    chosen = mask[3] > 0
    row = values[3, chosen]
    mean = row.mean()
    scale = (row - mean).abs().mean()
    assert float(fit.components.row_scale[0, 3]) == pytest.approx(float(scale), rel=1e-5)
    if order == 1:
        assert float(fit.mean[3]) == pytest.approx(float(mean), rel=1e-4)
    assert fit.mean[0] == 0
    assert not fit.components.row_scale[:, 0].any()


@pytest.mark.parametrize("order", [1, 2])
def test_alternation_never_raises_the_error(order: int) -> None:
    values, mask = noise(7, 60) + 0.05, half_mask(7, 60)
    start, _ = residual(values, mask, order)
    errors = [error(values, mask, alternate(values, mask, start, n)) for n in range(12)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))
    assert errors[-1] < 0.99 * errors[0]


def test_the_drop_of_the_error_follows_from_scale_and_mean() -> None:
    """After T sweeps: n (a_T^2 - a_0^2 - (mu_T - mu_0)^2), once the signs have settled."""
    values, mask = noise(5, 80) + 0.05, torch.ones(5, 80)
    start, _ = residual(values, mask, 1)
    final = alternate(values, mask, start, 200)
    drop = (values - written(start)).square().sum(1) - (values - written(final)).square().sum(1)
    scales = final.components.row_scale[0].square() - start.components.row_scale[0].square()
    expected = 80 * (scales - (final.mean - start.mean).square())
    torch.testing.assert_close(drop, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2])
def test_rows_and_columns_in_turn_never_raise_the_error(order: int) -> None:
    values, mask = noise(12, 40), half_mask(12, 40)
    start, lost = row_column_start(values, mask, order)
    assert float(lost) == pytest.approx(error(values, mask, start), rel=1e-4)
    errors = [error(values, mask, row_column(values, mask, order, n)) for n in range(8)]
    assert all(b <= a * (1 + 1e-6) for a, b in pairwise(errors))
    if order == 1:  # the signs stay those of the weights
        signs = row_column(values, mask, 1, 8).components.signs[0]
        assert torch.equal(signs[mask > 0] > 0, values[mask > 0] >= 0)


def test_the_second_order_is_no_worse_in_any_row() -> None:
    values, mask = noise(9, 64), half_mask(9, 64)
    lost = [
        ((values - written(residual(values, mask, order)[0])) * mask).square().sum(1)
        for order in (1, 2)
    ]
    assert bool((lost[1] <= lost[0] + 1e-9).all())


def test_a_refit_in_a_metric_reaches_its_minimum() -> None:
    values, mask, metric = noise(5, 32) + 0.02, half_mask(5, 32), correlated_moment(32)
    start, _ = residual(values, mask, 2)

    def cost(fit: PartFit) -> Tensor:
        lost = ((values - written(fit)) * mask).double()
        return ((lost @ metric.double()) * lost).sum(1)

    costs = [cost(metric_refit(values, mask, start, metric, n)) for n in (0, 1, 15, 3000)]
    for before, after in pairwise(costs):
        assert bool((after <= before * (1 + 1e-5) + 1e-12).all())
    signs = start.components.signs[:, 3].double()
    basis = torch.cat([torch.ones(1, 32, dtype=torch.float64), signs]) * mask[3].double()
    root = torch.linalg.cholesky(metric.double())
    target = (values * mask)[3].double() @ root
    best = torch.linalg.lstsq((basis @ root).T, target[:, None]).solution
    lost = target - (best.T @ basis @ root)[0]
    assert float(costs[-1][3]) == pytest.approx(float(lost.square().sum()), rel=1e-3)


def test_errors_on_gaussian_weights_are_the_known_ones() -> None:
    values = noise(256, 128, seed=5)
    everything = torch.ones_like(values)
    energy = float(values.square().sum())
    one, two = (residual(values, everything, order)[0] for order in (1, 2))
    found = {
        0.359: row_column(values, everything, 1, 15),
        0.113: row_column(values, everything, 2, 15),
        0.110: alternate(values, everything, two, 15),
    }
    for expected, fit in found.items():
        assert error(values, everything, fit) / energy == pytest.approx(expected, rel=0.03)
    assert error(values, everything, one) / energy == pytest.approx(0.36, rel=0.03)
