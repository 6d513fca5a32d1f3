"""Errors on lines by prefix sums, lines by codes, and the published proposals."""

import pytest
import torch

from qdc.numerics.coefficientsearch import CoefficientSearch, proposed
from qdc.numerics.coefficienttable import (
    CoefficientTable,
    TableGrid,
    fit_table,
    line_errors,
    sorted_rows,
)
from qdc.numerics.planegrid import Coefficients, PlaneGrid, plane_levels, row_costs
from tests.support.units import correlated_moment, noise


def table(lines: int, offset: bool) -> CoefficientTable:
    numbers = noise(lines, 3, 5).half().float()
    return CoefficientTable(Coefficients(numbers[:, :2], numbers[:, 2] if offset else None))


def test_errors_are_those_of_rounding_every_weight() -> None:
    block, lines = noise(7, 33), table(9, True)
    levels = plane_levels(lines.lines).T.double().sort(dim=1).values
    found = line_errors(sorted_rows(block), levels)
    for line in range(9):
        grid = PlaneGrid(lines.take(torch.full((7,), line)))
        expected = row_costs(block, grid.round(block), None)
        assert torch.allclose(found[:, line], expected, rtol=1e-6)
    assert torch.equal(lines.nearest_lines(block), found.argmin(1))


def test_a_refit_takes_the_best_line_for_the_codes() -> None:
    block, lines, metric = noise(5, 24), table(12, False), correlated_moment(24)
    grid = TableGrid(lines, lines.nearest_lines(block))
    codes = grid.encode(grid.round(block))
    moved, written = grid.refit(block, grid.round(block), metric)
    every = torch.stack(
        [
            row_costs(block, PlaneGrid(lines.take(torch.full((5,), i))).write(codes), metric)
            for i in range(12)
        ]
    )
    assert torch.equal(moved.index, every.argmin(0))
    assert torch.equal(moved.write(codes), written)


def test_a_table_for_all_groups_holds_the_fit_of_each() -> None:
    weight = noise(4, 32)
    slices = (slice(0, 16), slice(16, 32))
    few, all_of = (
        fit_table(weight, slices, 2, offset=True, lines=lines, refits=2, seed=0) for lines in (2, 8)
    )
    costs = []
    for fitted in (few, all_of):
        grids = [TableGrid(fitted, fitted.nearest_lines(weight[:, part])) for part in slices]
        dense = [grid.round(weight[:, part]) for grid, part in zip(grids, slices, strict=True)]
        costs.append(float((weight - torch.cat(dense, 1)).square().sum()))
    assert costs[1] < 0.9 * costs[0]


def test_proposals_are_alternating_powers_and_combinations() -> None:
    group = noise(1, 128)[0]
    found = proposed(group, 2, 1)
    powered, combined = found[: 64 * 40 * 40].reshape(40, 40, 64, 2), found[64 * 40 * 40 :]
    assert len(combined) == 320 * 321 // 2
    least, largest = float(group.min()), float(group.max())
    assert float(combined.max() - combined.min()) == pytest.approx(1.4 * (largest - least))
    # What two neighbouring scales add is a multiple of (1, r), which spans 1 from least to largest.
    step = (powered[0, 1] - powered[0, 0]).double()
    step = step / step.abs().sum(1, keepdim=True)
    ratio = (step[:, 1] / step[:, 0]).abs()
    assert bool((step[:, 0] * step[:, 1] < 0).all())
    outside = (ratio > 0.945) & (ratio < 1.055)
    assert not bool(outside.any())
    assert float(ratio.min()) > 0.52
    assert float(ratio.max()) < 2.1
    finer = proposed(group, 2, 1.2)
    assert len(finer) == 76 * 48 * 48 + 418 * 419 // 2


def test_a_group_seen_before_takes_its_line() -> None:
    block = noise(10, 32)
    search = CoefficientSearch(2, 4096)
    first = search.place(block)
    before = len(search.result().lines.planes)
    again = search.place(block[:1] * 1e-3)
    # Its error is far below that of the last twenty groups on the first line that will do.
    assert len(search.result().lines.planes) == before
    assert int(again) == 0
    assert len(set(first.tolist())) == 10
