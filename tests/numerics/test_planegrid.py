"""Levels of {0, 1} planes: nearest against brute force, refits, starts."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.planegrid import (
    Coefficients,
    PlaneGrid,
    alternate,
    row_costs,
    stored_coefficients,
)
from qdc.numerics.planestart import (
    even_levels,
    fit_bits,
    fit_with_offset,
    fit_without_offset,
    highest_bits,
)
from tests.support.units import correlated_moment, noise


def grid(rows: int, planes: int, offset: bool, seed: int = 0) -> PlaneGrid:
    numbers = noise(rows, planes + 1, seed)
    return PlaneGrid(
        stored_coefficients(numbers[:, :planes], numbers[:, planes] if offset else None)
    )


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_nearest_is_the_nearest_of_all_sums(planes: int, offset: bool) -> None:
    levels, block = grid(5, planes, offset), noise(5, 30, 1)
    for row in range(5):
        planes_of, first = levels.coefficients.planes[row].double().numpy(), 0.0
        if levels.coefficients.offset is not None:
            first = float(levels.coefficients.offset[row])
        every = [
            first + float(np.dot(bits, planes_of))
            for bits in itertools.product((0, 1), repeat=planes)
        ]
        for column in range(30):
            found = float(levels.nearest(column, block[:, column])[row])
            least = min(abs(each - float(block[row, column])) for each in every)
            assert abs(found - float(block[row, column])) == pytest.approx(least, abs=1e-6)
    rounded = levels.round(block)
    by_column = [levels.nearest(j, block[:, j]) for j in range(30)]
    assert torch.equal(rounded, torch.stack(by_column, dim=1))
    assert torch.equal(levels.write(levels.encode(rounded)), rounded)


def test_levels_that_coincide_are_one() -> None:
    same = PlaneGrid(Coefficients(torch.tensor([[0.5, 0.5], [0.0, 0.0]]), None))
    block = torch.tensor([[0.4, 0.8, -1.0], [0.3, -0.2, 0.0]])
    assert same.round(block).tolist() == [[0.5, 1.0, 0.0], [0.0, 0.0, 0.0]]
    assert torch.equal(same.write(same.encode(same.round(block))), same.round(block))


@pytest.mark.parametrize("offset", [True, False])
def test_a_refit_is_the_least_squares_solution_of_each_row(offset: bool) -> None:
    levels, block, metric = grid(4, 2, offset), noise(4, 24, 1), correlated_moment(24)
    dense = levels.round(block)
    moved, written = levels.refit(block, dense, metric)
    codes = levels.encode(dense)
    assert torch.equal(moved.write(codes), written)
    root = np.linalg.cholesky(metric.double().numpy())
    for row in range(4):
        columns = [(codes[row] >> k & 1).double().numpy() for k in range(2)]
        if offset:
            columns.append(np.ones(24))
        seen = root.T @ np.stack(columns, axis=1)
        best = np.linalg.lstsq(seen, root.T @ block[row].double().numpy(), rcond=None)[0]
        least = np.square(seen @ best - root.T @ block[row].double().numpy()).sum()
        found = float(row_costs(block[row : row + 1], written[row : row + 1], metric))
        before = float(row_costs(block[row : row + 1], dense[row : row + 1], metric))
        assert least <= found * (1 + 1e-9)
        assert found <= min(before, 1.002 * least + 1e-6 * before)


def test_a_plane_that_nothing_uses_keeps_its_coefficient() -> None:
    levels = PlaneGrid(Coefficients(torch.tensor([[1.0, 8.0]]), None))
    block = torch.tensor([[0.9, 1.3, 0.1, 0.0]])
    moved, _ = levels.refit(block, levels.round(block), None)
    assert float(moved.coefficients.planes[0, 1]) == 8
    assert float(moved.coefficients.planes[0, 0]) == pytest.approx(1.1, rel=1e-3)


def test_alternation_never_loses_and_ends_where_nothing_moves() -> None:
    block = noise(6, 64)
    start = even_levels(block, 2)
    costs = [row_costs(block, alternate(block, start, n)[1], None) for n in (0, 1, 5, 200)]
    assert all(bool((b <= a * (1 + 1e-9)).all()) for a, b in itertools.pairwise(costs))
    ended, dense = alternate(block, start, 200)
    assert torch.equal(alternate(block, ended, 1)[1], dense)


def test_starts_are_the_published_grids() -> None:
    block = torch.tensor([[4.0, -1.0, 2.0, 0.5]])
    assert even_levels(block, 2).sorted[:, 0].tolist() == [-2.0, 0.0, 2.0, 4.0]
    assert even_levels(block, 2, mirrored=True).sorted[:, 0].tolist() == [-4.0, -2.0, 0.0, 2.0]
    assert even_levels(block, 3).sorted[:, 0].tolist() == [-3.0, -2, -1, 0, 1, 2, 3, 4]
    # Codes 255, 0, 153 and 76 of 8 bits: 11.., 00.., 10.. and 01..; the highest bit is plane 0.
    assert highest_bits(block, 2).tolist() == [[3, 0, 1, 2]]


@pytest.mark.parametrize("planes", [1, 2, 3, 4])
def test_weights_on_levels_are_met(planes: int) -> None:
    exact = 0.5 * torch.arange(2**planes).repeat(3, 4) - 1
    assert torch.equal(fit_bits(exact, planes, 0, None)[1], exact)
    assert torch.equal(fit_with_offset(exact, planes, 5, 0)[1], exact)
    shifted = exact - exact.amax() + 0.5 * 2 ** (planes - 1)
    assert torch.allclose(fit_without_offset(shifted, planes, 5, mirror=False)[1], shifted)
    assert torch.allclose(fit_without_offset(-shifted, planes, 5, mirror=True)[1], -shifted)


@pytest.mark.parametrize("value", [0.0, 0.25])
def test_rows_without_spread(value: float) -> None:
    block = torch.full((2, 16), value)
    for levels, dense in (fit_bits(block, 2, 1e-4, None), fit_with_offset(block, 2, 5, 1e-4)):
        assert torch.allclose(dense, block, atol=1e-4)
        assert levels.coefficients.planes.isfinite().all()
    assert torch.allclose(fit_without_offset(block, 2, 5, mirror=True)[1], block)


def test_what_does_not_fit_fp16_is_refused() -> None:
    block: Tensor = noise(2, 16) * 1e7
    with pytest.raises(OverflowError, match="fp16"):
        fit_bits(block, 2, 1e-4, None)
    with pytest.raises(OverflowError, match="fp16"):
        even_levels(block, 2)
