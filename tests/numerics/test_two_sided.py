"""Two-sided feedback: against its definition, and against feedback along columns alone."""

import pytest
import torch
from torch import Tensor

from qdc.numerics.blocks import block_slices
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import quantize_blocks
from qdc.numerics.two_sided import TwoSidedMetric, handed_on, quantize_tiles
from tests.support.units import correlated_moment, noise


def metric_of(rows: int, columns: int) -> tuple[TwoSidedMetric, Tensor, Tensor]:
    """A metric of random moments, and both of them as they are damped, f64."""
    found = [correlated_moment(n).double() for n in (rows, columns)]
    damped = [m + 0.01 * m.diagonal().mean() * torch.eye(len(m)).double() for m in found]
    factors = [factorize(moment.float(), 0.01).upper for moment in found]
    return TwoSidedMetric(*factors), damped[0], damped[1]


def rounded(down: Tensor, along: Tensor, place: Tensor) -> Tensor:
    """Whole numbers."""
    return place.round()


def test_the_cost_is_that_of_both_moments() -> None:
    metric, rows, columns = metric_of(12, 20)
    weight, dense = noise(12, 20), noise(12, 20, seed=1)
    error = (weight - dense).double()
    expected = torch.trace(rows @ error @ columns @ error.T)
    assert metric.loss(weight, dense) == pytest.approx(float(expected), rel=1e-4)


def test_the_share_is_where_the_cost_is_least() -> None:
    metric, _, _ = metric_of(12, 20)
    weight = noise(12, 20)
    dense = weight + 0.3 * noise(12, 20, seed=1)
    best = metric.share(weight, dense)
    least = metric.loss(weight, dense * best)
    assert least < min(metric.loss(weight, dense * best * f) for f in (0.99, 1.01))


@pytest.mark.parametrize("width", [1, 4, 20])
def test_what_is_handed_on_is_the_root_without_its_blocks(width: int) -> None:
    metric, _, columns = metric_of(12, 20)
    handed = handed_on(metric.columns, width).double()
    blocks = torch.kron(torch.eye(20 // width), torch.ones(width, width)).bool()
    assert not handed[blocks].any()
    whole = handed + torch.eye(20)
    middle = torch.linalg.inv(whole) @ columns @ torch.linalg.inv(whole).T
    torch.testing.assert_close(middle, middle * blocks, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "width"), [(4, 5), (3, 4), (12, 20), (1, 1), (4, 20), (12, 5)])
def test_each_tile_is_quantized_where_errors_before_it_want_it(height: int, width: int) -> None:
    metric, _, _ = metric_of(12, 20)
    weight, places = 3 * noise(12, 20), torch.zeros(12, 20)

    def quantize(down: Tensor, along: Tensor, place: Tensor) -> Tensor:
        for i, j, tile in zip(down.tolist(), along.tolist(), place, strict=True):
            places[i * height : (i + 1) * height, j * width : (j + 1) * width] = tile
        return place.round()

    found = quantize_tiles(weight, metric, height, width, quantize)
    error = weight - found
    lower = torch.eye(12) + handed_on(metric.rows, height).T
    upper = torch.eye(20) + handed_on(metric.columns, width)
    torch.testing.assert_close(places - found, lower @ error @ upper, rtol=1e-4, atol=1e-4)
    assert torch.equal(found, places.round())


def test_with_equal_outputs_it_is_feedback_along_columns() -> None:
    metric, _, _ = metric_of(12, 20)
    plain, weight = metric._replace(rows=torch.eye(12)), 3 * noise(12, 20)
    found = quantize_tiles(weight, plain, 4, 5, rounded)
    expected = quantize_blocks(
        weight, metric.columns, block_slices(20, 5), "exact", lambda index, block: block.round()
    )
    torch.testing.assert_close(found, expected)


def test_it_costs_less_than_feedback_along_columns() -> None:
    metric, _, _ = metric_of(48, 40)
    plain, weight = metric._replace(rows=torch.eye(48)), 2 * noise(48, 40)
    both, one = (
        metric.loss(weight, quantize_tiles(weight, m, 4, 4, rounded)) for m in (metric, plain)
    )
    assert both < 0.7 * one


def test_rows_that_fill_up_hand_nothing_on() -> None:
    metric, _, _ = metric_of(10, 20)
    weight = torch.cat([3 * noise(10, 20), torch.full((2, 20), 0.4)])
    found = quantize_tiles(weight, metric, 4, 5, rounded)
    other = quantize_tiles(weight.index_fill(0, torch.tensor([10, 11]), 7.3), metric, 4, 5, rounded)
    assert torch.equal(found[:8], other[:8])
