"""Levels by part: looked up, chosen freely, refitted together."""

import pytest
import torch
from torch import Tensor

from qdc.numerics.partbinary import residual, row_column
from qdc.numerics.partitiongrid import PartitionGrid, solve
from qdc.numerics.parts import BinaryPart, UniformPart
from tests.support.units import correlated_moment, noise

ROWS, COLUMNS = 6, 24


def binary_grid(block: Tensor, *, has_mean: bool, free: bool = False) -> PartitionGrid:
    """Columns 0, 5 and 9 salient; others by whether they exceed 0.2 in size."""
    salient = torch.zeros(COLUMNS, dtype=torch.bool)
    salient[[0, 5, 9]] = True
    parts = torch.where(salient, 2, (block.abs() > 0.2).long()).to(torch.uint8)
    allowed = torch.stack([~salient, ~salient, salient])
    grids = []
    for number, order in enumerate((1, 1, 2)):
        mask = (parts == number).float()
        fit = residual(block, mask, order)[0] if has_mean else row_column(block, mask, order, 5)
        grids.append(BinaryPart(fit, has_mean=has_mean))
    return PartitionGrid(parts, grids, allowed, free=free)


def levels(grid: PartitionGrid, number: int, r: int, j: int) -> list[float]:
    part = grid.grids[number]
    assert isinstance(part, BinaryPart)
    values = [0.0]
    for scale in (part.row_scale[:, r] * part.col_scale[:, j]).tolist():
        values = [value + sign * scale for value in values for sign in (1, -1)]
    return [value + float(part.mean[r]) for value in values]


def on_levels(grid: PartitionGrid, target: Tensor) -> Tensor:
    return torch.stack([grid.nearest(j, target[:, j]) for j in range(target.shape[1])], dim=1)


@pytest.mark.parametrize("has_mean", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_each_element_takes_the_nearest_level_of_its_parts(has_mean: bool, free: bool) -> None:
    block = noise(ROWS, COLUMNS)
    grid = binary_grid(block, has_mean=has_mean, free=free)
    target = noise(ROWS, COLUMNS, seed=4)
    found = on_levels(grid, target)
    for r in range(ROWS):
        for j in range(COLUMNS):
            own = [int(grid.parts[r, j])]
            numbers = grid.allowed[:, j].nonzero().flatten().tolist() if free else own
            choices = [level for number in numbers for level in levels(grid, number, r, j)]
            best = min(abs(level - float(target[r, j])) for level in choices)
            assert abs(float(found[r, j] - target[r, j])) == pytest.approx(best, abs=1e-6)
    written = torch.zeros_like(found)
    for number, part in enumerate(grid.grids):
        level = part.write(part.basis(found))
        written = torch.where(grid.locate(found) == number, level, written)
    assert torch.equal(written, found)


@pytest.mark.parametrize("has_mean", [True, False])
@pytest.mark.parametrize("free", [True, False])
def test_refits_lower_the_cost_in_the_metric(has_mean: bool, free: bool) -> None:
    block, metric = noise(ROWS, COLUMNS), correlated_moment(COLUMNS)
    grid = binary_grid(block, has_mean=has_mean, free=free)
    dense = on_levels(grid, block)

    def cost(written: Tensor) -> float:
        lost = (block - written).double()
        return float(((lost @ metric.double()) * lost).sum())

    refitted, better = grid.refit(block, dense, metric)
    assert cost(better) < 0.9 * cost(dense)
    assert torch.equal(on_levels(refitted, better), better)


def test_parts_of_two_kinds_are_refitted_together() -> None:
    block, metric = noise(ROWS, COLUMNS), correlated_moment(COLUMNS)
    marked = block.abs() > 0.3
    fit, _ = residual(block, (~marked).float(), 1)
    grids = BinaryPart(fit, has_mean=True), UniformPart.fit(block, marked, 8)
    allowed = torch.ones(2, COLUMNS, dtype=torch.bool)
    grid = PartitionGrid(marked.to(torch.uint8), grids, allowed)
    dense = on_levels(grid, block)
    assert float((dense - block)[marked].abs().max()) <= float(grids[1].step.max()) / 2 + 1e-3
    _, better = grid.refit(block, dense, metric)
    root = torch.linalg.cholesky(metric)
    before, after = (((block - each) @ root).square().sum(1) for each in (dense, better))
    assert bool((after <= before * 1.001).all())
    assert float(after.sum()) < 0.9 * float(before.sum())


def test_unknowns_without_influence_are_zero_and_equal_ones_share() -> None:
    system = torch.tensor([[2.0, 2.0, 0.0], [2.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    found = solve(system, torch.tensor([[4.0], [4.0], [0.0]]))
    torch.testing.assert_close(found, torch.tensor([[1.0], [1.0], [0.0]]), rtol=1e-4, atol=0)


def test_scales_beyond_fp16_are_refused() -> None:
    fit, _ = residual(1e6 * noise(ROWS, COLUMNS), torch.ones(ROWS, COLUMNS), 1)
    with pytest.raises(OverflowError, match="not finite in fp16"):
        BinaryPart(fit, has_mean=True)
