from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.affinegrid import AffineGrid
from qdc.numerics.blocks import block_slices
from qdc.numerics.columns import block_metric, quantize_block
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import (
    Compensation,
    quantize_blocks,
    quantize_on_grids,
    residual_cost,
)
from qdc.numerics.threads import SMALL_BLOCK

RULES: tuple[Compensation, ...] = get_args(Compensation)


def problem(seed: int, rows: int = 5, columns: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, damped moment, factor."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator)
    inputs = torch.randn(4 * columns, columns, generator=generator) @ mix
    moment = inputs.T @ inputs / len(inputs)
    damped = moment + 0.01 * moment.diagonal().mean() * torch.eye(columns)
    weight = torch.randn(rows, columns, generator=generator) * 2
    return weight, damped, factorize(moment, 0.01).upper


def cost(weight: Tensor, dense: Tensor, metric: Tensor) -> float:
    error = (weight - dense).double().numpy()
    return float(np.trace(error @ metric.double().numpy() @ error.T))


def rounded(_: int, block: Tensor) -> Tensor:
    return block.round()


def first_only(index: int, block: Tensor) -> Tensor:
    return block.round() if index == 0 else block


@pytest.mark.parametrize("seed", range(5))
def test_exact_attains_the_minimum_given_the_first_block(seed: int) -> None:
    weight, metric, upper = problem(seed)
    dense = quantize_blocks(weight, upper, block_slices(16, 4), "exact", first_only)
    m = metric.double().numpy()
    error = (weight[:, :4] - weight[:, :4].round()).double().numpy()
    best = weight[:, 4:].double().numpy() + error @ np.linalg.solve(m[4:, 4:], m[4:, :4]).T
    np.testing.assert_allclose(dense[:, 4:].numpy(), best, rtol=1e-3, atol=1e-3)
    optimum = cost(weight, torch.from_numpy(np.hstack([weight[:, :4].round(), best])), metric)
    assert cost(weight, dense, metric) == pytest.approx(optimum, rel=1e-4)


@pytest.mark.parametrize("seed", range(5))
def test_exact_beats_diag_beyond_rounding_given_the_first_block(seed: int) -> None:
    weight, metric, upper = problem(seed)
    exact, diag, none = (
        cost(weight, quantize_blocks(weight, upper, block_slices(16, 4), r, first_only), metric)
        for r in ("exact", "diag", "none")
    )
    assert exact < 0.999 * diag
    assert exact < 0.999 * none


def test_diag_divides_by_the_diagonal() -> None:
    weight, _, upper = problem(0)
    dense = quantize_blocks(weight, upper, block_slices(16, 4), "diag", first_only)
    w, u = weight.tolist(), upper.tolist()
    for i in range(5):
        scaled = [(w[i][j] - round(w[i][j])) / u[j][j] for j in range(4)]
        for column in range(4, 16):
            expected = w[i][column] - sum(scaled[j] * u[j][column] for j in range(4))
            assert dense[i, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_width_one_is_the_column_by_column_rule() -> None:
    weight, _, upper = problem(1)
    rest, u = weight.double().numpy().copy(), upper.double().numpy()
    expected = np.zeros_like(rest)
    for j in range(16):
        expected[:, j] = rest[:, j].round()
        rest[:, j + 1 :] -= np.outer((rest[:, j] - expected[:, j]) / u[j, j], u[j, j + 1 :])
    for rule in ("exact", "diag"):
        dense = quantize_blocks(weight, upper, block_slices(16, 1), rule, rounded)
        np.testing.assert_array_equal(dense.numpy(), expected)


def test_a_diagonal_moment_leaves_nothing_to_compensate() -> None:
    weight, _, _ = problem(2)
    upper = factorize(torch.diag(torch.arange(1.0, 17.0))).upper
    results = [quantize_blocks(weight, upper, block_slices(16, 4), rule, rounded) for rule in RULES]
    assert all(torch.equal(result, weight.round()) for result in results)


def test_none_quantizes_the_weight_as_it_is() -> None:
    weight, _, upper = problem(2)
    dense = quantize_blocks(weight, upper, block_slices(16, 4), "none", rounded)
    assert torch.equal(dense, weight.round())


@pytest.mark.parametrize("width", [3, 4, 16])
def test_scaled_block_errors_add_up_to_the_cost(width: int) -> None:
    weight, metric, upper = problem(3)
    parts = block_slices(16, width)
    totals = {"exact": 0.0, "diag": 0.0}
    for rule in ("exact", "diag"):

        def watched(index: int, block: Tensor, rule: str = rule) -> Tensor:
            triangle = upper[parts[index], parts[index]].double().numpy()
            error = (block - block.round()).double().numpy()
            if rule == "diag":
                triangle = np.diag(np.diag(triangle))
            totals[rule] += float((np.linalg.solve(triangle.T, error.T) ** 2).sum())
            return block.round()

        dense = quantize_blocks(weight, upper, parts, rule, watched)
        total = pytest.approx(cost(weight, dense, metric), rel=1e-4)
        assert residual_cost(weight, dense, upper) == total
        # The identity holds for the exact rule only, so this tells the two apart.
        assert (totals[rule] == total) == (rule == "exact")


def test_touches_neither_its_input_nor_trusts_the_quantizer_with_its_own() -> None:
    weight, _, upper = problem(4)
    before = weight.clone()

    def in_place(_: int, block: Tensor) -> Tensor:
        return block.round_()

    parts = block_slices(16, 4)
    dense = quantize_blocks(weight, upper, parts, "exact", in_place)
    assert torch.equal(weight, before)
    assert torch.equal(dense, quantize_blocks(weight, upper, parts, "exact", rounded))


def test_permuting_rows_permutes_the_result() -> None:
    weight, _, upper = problem(5)
    rows = torch.tensor([3, 0, 4, 1, 2])
    parts = block_slices(16, 5)
    dense = quantize_blocks(weight, upper, parts, "exact", rounded)
    assert torch.equal(quantize_blocks(weight[rows], upper, parts, "exact", rounded), dense[rows])


@pytest.mark.parametrize(
    "parts",
    [
        (slice(0, 8),),
        (slice(0, 8), slice(9, 16)),
        (slice(0, 9), slice(8, 16)),
        (slice(8, 16), slice(0, 8)),
        (slice(0, 16, 2),),
        (slice(0, 0), slice(0, 16)),
    ],
)
def test_refuses_blocks_that_do_not_tile(parts: tuple[slice, ...]) -> None:
    weight, _, upper = problem(0)
    with pytest.raises(ValueError, match="block"):
        quantize_blocks(weight, upper, parts, "exact", rounded)


def test_refuses_unknown_rules_and_wrong_shapes() -> None:
    weight, _, upper = problem(0)
    parts = block_slices(16, 4)
    with pytest.raises(ValueError, match="one of"):
        quantize_blocks(weight, upper, parts, "full", rounded)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="factor"):
        quantize_blocks(weight, upper[:8, :8], parts, "exact", rounded)
    with pytest.raises(ValueError, match="block 0"):
        quantize_blocks(weight, upper, parts, "exact", lambda _, block: block[:, :1])


def fitted(block: Tensor) -> AffineGrid:
    return AffineGrid.fit(block, 2)


def test_grids_take_part_block_by_block() -> None:
    """The two loops together are what writing them out by hand gives, to the bit."""
    weight, _, upper = problem(0, columns=20)
    slices = block_slices(20, 8)

    def quantize(index: int, block: Tensor) -> Tensor:
        metric = block_metric(upper[slices[index], slices[index]], by_activation=True)
        return quantize_block(block, None, fitted(block), metric, rounds=2, sweeps=1)[1]

    grids, dense = quantize_on_grids(
        weight, upper, slices, fitted, rounds=2, sweeps=1, by_activation=True
    )
    assert torch.equal(dense, quantize_blocks(weight, upper, slices, "exact", quantize))
    for grid, part in zip(grids, slices, strict=True):
        for column in range(part.start, part.stop):
            assert torch.equal(
                grid.nearest(column - part.start, dense[:, column]), dense[:, column]
            )


def test_feedback_on_grids_beats_rounding_to_them() -> None:
    weight, metric, upper = problem(1, rows=9, columns=24)
    slices = block_slices(24, 8)
    plain = torch.cat(
        [
            torch.stack([fitted(block).nearest(j, block[:, j]) for j in range(8)], dim=1)
            for block in (weight[:, part] for part in slices)
        ],
        dim=1,
    )
    _, dense = quantize_on_grids(weight, upper, slices, fitted)
    assert cost(weight, dense, metric) < 0.8 * cost(weight, plain, metric)


@pytest.mark.parametrize(("rows", "inside"), [(5, 1), (SMALL_BLOCK // 8, 2)])
def test_small_blocks_are_quantized_on_one_thread(rows: int, inside: int) -> None:
    """Threads that wait for each other after every column cost more than they compute."""
    weight, _, upper = problem(0, rows=rows)
    seen = []

    def quantize(index: int, block: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        if index:
            raise OverflowError
        return block.round()

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(OverflowError):
            quantize_blocks(weight, upper, block_slices(16, 8), "exact", quantize)
        assert seen == [inside, inside]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
