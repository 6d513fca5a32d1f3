"""Levels of ggml's blocks: they are what is stored, and refits lower the cost of every row."""

import itertools

import pytest
import torch

from qdc.numerics.columns import block_metric, quantize_block
from qdc.numerics.factor import factorize
from qdc.numerics.ggmltypes import TYPES, BlockType, decode
from qdc.numerics.subblockgrid import SubblockGrid, row_costs

KINDS = [kind for kind in TYPES.values() if kind.name != "Q8_0"]
by_name = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
GAUSSIAN = {
    "Q1_0": 0.363,
    "Q2_0": 0.126,
    "TQ2_0": 0.137,
    "Q2_K": 0.0724,
    "Q3_K": 0.0208,
    "Q6_K": 3e-4,
}
"""Relative squared error of the first fit on Gaussian weights, measured; llama.cpp's own quantizer
has 0.0722 for Q2_K, 0.0209 for Q3_K and 0.65 for TQ2_0 on the same."""


def gaussian(rows: int, columns: int) -> torch.Tensor:
    return 0.02 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


def correlated(columns: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    mixing = torch.randn(columns, columns, generator=generator)
    states = torch.randn(4 * columns, columns, generator=generator)
    inputs = states @ (torch.arange(1, columns + 1)[:, None] ** -0.5 * mixing)
    return factorize(inputs.T @ inputs / len(inputs)).upper


@by_name
def test_first_levels_of_gaussian_weights(kind: BlockType) -> None:
    block = gaussian(256, kind.width)
    grid = SubblockGrid.fit(block, kind, torch.ones(kind.width))
    error = (grid.written(grid.codes(block)) - block).square().sum() / block.square().sum()
    assert float(error) == pytest.approx(GAUSSIAN[kind.name], rel=0.04)


@by_name
def test_levels_are_what_is_stored(kind: BlockType) -> None:
    block, metric = gaussian(9, kind.width), block_metric(correlated(kind.width))
    block[3] = 0
    block[5] = block[5].abs() + 0.1
    grid = SubblockGrid.fit(block, kind, metric.full.diagonal())
    grid, best = quantize_block(block, None, grid, metric, rounds=2, sweeps=1)
    fields = grid.encode(best)
    assert torch.equal(decode(fields), best)
    assert torch.equal(decode(kind.unpack(kind.pack(fields))), best)
    columns = [grid.nearest(column, best[:, column]) for column in range(kind.width)]
    assert torch.equal(torch.stack(columns, 1), best)


@by_name
def test_no_row_is_worse_after_a_refit(kind: BlockType) -> None:
    block, metric = gaussian(17, kind.width), block_metric(correlated(kind.width))
    grid = SubblockGrid.fit(block, kind, torch.ones(kind.width))
    dense = grid.written(grid.codes(block))
    _, refitted = grid.refit(block, dense, metric.full)
    before = row_costs(block, dense, metric.full)
    after = row_costs(block, refitted, metric.full)
    assert bool((after <= before * (1 + 1e-6)).all())
    assert float(after.sum()) < 0.98 * float(before.sum())


def test_integers_of_a_refit_are_the_best_there_are() -> None:
    """One sub-block moves, all others are at rest: no scale and minimum would cost less."""
    kind, metric = TYPES["Q2_K"], torch.eye(256)
    block = gaussian(1, 256)
    grid = SubblockGrid.fit(block, kind, torch.ones(256))
    codes = grid.codes(block)
    refitted, dense = grid.refit(block, grid.written(codes), metric)
    found = float((block - dense)[:, :16].square().sum())
    d, dmin = refitted.stored.d, refitted.stored.dmin
    best = min(
        float((block[:, :16] - (d * s * codes[:, 0] - dmin * m)).square().sum())
        for s, m in itertools.product(range(16), range(16))
    )
    assert found == pytest.approx(best, rel=1e-4)


def test_scales_beyond_fp16_are_refused() -> None:
    for kind in KINDS:
        with pytest.raises(OverflowError, match="fp16"):
            SubblockGrid.fit(1e12 * gaussian(2, kind.width), kind, torch.ones(kind.width))
