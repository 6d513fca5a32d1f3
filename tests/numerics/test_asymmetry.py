"""GPTAQ's term: the cross moment, the matrix P, and what the driver does with it."""

import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.asymmetry import CrossMomentAccumulator, asymmetry_term, drifted_target
from qdc.numerics.blocks import block_slices
from qdc.numerics.factor import factorize
from qdc.numerics.feedback import quantize_blocks


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def streams(columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Original inputs, and what is left of them: f32[tokens, columns]."""
    original = noise(8 * columns, columns, seed=seed) @ noise(columns, columns, seed=seed + 1)
    return original, original + noise(8 * columns, columns, seed=seed + 2) @ (
        0.3 * noise(columns, columns, seed=seed + 3)
    )


def statistics(columns: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Cross moment and factor."""
    original, inputs = streams(columns, seed)
    cross = CrossMomentAccumulator(columns)
    cross.add(inputs, original)
    return cross.value(), factorize(inputs.T @ inputs / len(inputs), 0.01).upper


def rounded(_: int, block: Tensor) -> Tensor:
    return block.round()


def test_the_cross_moment_is_a_mean_over_tokens() -> None:
    original, inputs = streams(6)
    accumulator = CrossMomentAccumulator(6)
    for first, second in zip(torch.split(inputs, 7), torch.split(original, 7), strict=True):
        accumulator.add(first[None], second[None])
    expected = (original - inputs).double().T @ inputs.double() / len(inputs)
    torch.testing.assert_close(accumulator.value().double(), expected, rtol=1e-4, atol=1e-4)
    drift = float((original - inputs).square().sum() / original.square().sum())
    assert accumulator.drift == pytest.approx(drift, rel=1e-5)


def test_weights_count_tokens_more_than_once() -> None:
    original, inputs = streams(4)
    repeated, weighted = CrossMomentAccumulator(4), CrossMomentAccumulator(4)
    repeated.add(torch.cat([inputs, inputs[:9]]), torch.cat([original, original[:9]]))
    weights = torch.ones(len(inputs))
    weights[:9] = 2
    weighted.add(inputs, original, weights)
    torch.testing.assert_close(weighted.value(), repeated.value(), rtol=1e-5, atol=1e-5)
    assert weighted.drift == pytest.approx(repeated.drift)


def test_refuses_what_does_not_fit() -> None:
    accumulator = CrossMomentAccumulator(4)
    with pytest.raises(ValueError, match="zero tokens"):
        accumulator.value()
    with pytest.raises(ValueError, match="do not fit"):
        accumulator.add(torch.zeros(3, 4), torch.zeros(2, 4))
    with pytest.raises(ValueError, match="do not fit"):
        accumulator.add(torch.zeros(3, 5), torch.zeros(3, 5))
    with pytest.raises(ValueError, match="asymmetry"):
        quantize_blocks(
            torch.zeros(2, 4), torch.eye(4), [slice(0, 4)], "exact", rounded, torch.eye(3)
        )


def test_equal_streams_give_nothing() -> None:
    original, _ = streams(8)
    accumulator = CrossMomentAccumulator(8)
    accumulator.add(original, original.clone())
    assert not accumulator.value().any()
    assert accumulator.drift == 0


def test_the_term_is_strictly_upper_and_proportional() -> None:
    cross, upper = statistics(10)
    term = asymmetry_term(cross, upper, 1.0)
    assert torch.equal(term, term.triu(1))
    d, u = cross.double().numpy(), upper.double().numpy()
    expected = np.triu(d @ u.T, 1) @ u
    np.testing.assert_allclose(term.numpy(), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(asymmetry_term(cross, upper, 0.25), term / 4)
    assert not asymmetry_term(cross, upper, 0.0).any()


@pytest.mark.parametrize("rule", ["exact", "diag", "none"])
@pytest.mark.parametrize("width", [1, 4, 12])
def test_a_term_of_zero_changes_no_bit(rule: str, width: int) -> None:
    cross, upper = statistics(12)
    weight, parts = 2 * noise(5, 12, seed=9), block_slices(12, width)
    term = asymmetry_term(cross, upper, 0.0)
    without = quantize_blocks(weight, upper, parts, rule, rounded)  # type: ignore[arg-type]
    found = quantize_blocks(weight, upper, parts, rule, rounded, term)  # type: ignore[arg-type]
    assert torch.equal(found, without)


def test_blocks_of_one_column_are_the_published_update() -> None:
    cross, upper = statistics(12)
    weight = 2 * noise(5, 12, seed=9)
    term = asymmetry_term(cross, upper, 1.0)
    rest, u, p = (t.double().numpy().copy() for t in (weight, upper, term))
    expected = np.zeros_like(rest)
    for j in range(12):
        column = rest[:, j].copy()
        expected[:, j] = column.round()
        rest[:, j + 1 :] -= np.outer((column - expected[:, j]) / u[j, j], u[j, j + 1 :])
        rest[:, j + 1 :] += np.outer(column, p[j, j + 1 :])
    found = quantize_blocks(weight, upper, block_slices(12, 1), "exact", rounded, term)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("width", [1, 3, 4, 12])
def test_without_error_the_width_of_a_block_does_not_matter(width: int) -> None:
    cross, upper = statistics(12)
    weight, term = noise(5, 12, seed=9), asymmetry_term(cross, upper, 1.0)

    def nothing(_: int, block: Tensor) -> Tensor:
        return block

    found = quantize_blocks(weight, upper, block_slices(12, width), "exact", nothing, term)
    rest = weight.double()
    for j in range(12):
        rest = rest + torch.outer(rest[:, j], term[j].double())
    torch.testing.assert_close(found.double(), rest, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("width", [1, 6])
def test_outputs_come_nearer_to_the_original_ones(width: int) -> None:
    ratios = []
    for seed in range(6):
        original, inputs = streams(24, seed)
        cross, upper = statistics(24, seed)
        weight = 4 * noise(16, 24, seed=seed + 9)
        losses = []
        for share in (0.0, 1.0):
            term = asymmetry_term(cross, upper, share)
            dense = quantize_blocks(weight, upper, block_slices(24, width), "exact", rounded, term)
            losses.append(float((original @ weight.T - inputs @ dense.T).square().sum()))
        ratios.append(losses[1] / losses[0])
    assert np.mean(ratios) < 0.95


def test_the_whole_target_is_the_damped_least_squares_solution() -> None:
    original, inputs = streams(10)
    cross, upper = statistics(10)
    weight = noise(5, 10, seed=9)
    x0, x, w = (t.double().numpy() for t in (original, inputs, weight))
    moment = x.T @ x / len(x)
    damp = 0.01 * moment.diagonal().mean() * np.eye(10)
    expected = np.linalg.solve(moment + damp, x.T @ x0 @ w.T / len(x) + damp @ w.T).T
    found = drifted_target(weight, cross, upper, 1.0).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)
    assert torch.equal(drifted_target(weight, 0 * cross, upper, 1.0), weight)
    assert torch.equal(drifted_target(weight, cross, upper, 0.0), weight)


def test_the_whole_target_is_nearer_than_the_published_term() -> None:
    ratios = []
    for seed in range(6):
        original, inputs = streams(24, seed)
        cross, upper = statistics(24, seed)
        weight, parts = 4 * noise(16, 24, seed=seed + 9), block_slices(24, 6)
        term = asymmetry_term(cross, upper, 1.0)
        target = drifted_target(weight, cross, upper, 1.0)
        losses = [
            float((original @ weight.T - inputs @ dense.T).square().sum())
            for dense in (
                quantize_blocks(weight, upper, parts, "exact", rounded, term),
                quantize_blocks(target, upper, parts, "exact", rounded),
            )
        ]
        ratios.append(losses[1] / losses[0])
    assert np.mean(ratios) < 0.95


def test_the_target_makes_up_for_the_residual_stream_too() -> None:
    """At share 1 it solves the damped least-squares problem with H0 - H on the other side."""
    original, inputs = streams(10)
    weight = noise(6, 10, seed=5)
    before, now = noise(len(inputs), 6, seed=6), noise(len(inputs), 6, seed=7)
    cross = CrossMomentAccumulator(10, rows=len(now.T))
    assert CrossMomentAccumulator(10).residual() is None
    for part in (slice(0, 30), slice(30, None)):
        cross.add(inputs[part], original[part])
        cross.add_residual(inputs[part], now[part], before[part])
    moment = (inputs.T @ inputs / len(inputs)).double()
    upper = factorize(moment.float()).upper
    x, x0, w, lost = (t.double().numpy() for t in (inputs, original, weight, before - now))
    damp = 0.01 * float(moment.diagonal().mean()) * np.eye(10)
    target = (x0 @ w.T + lost).T @ x / len(x)
    expected = np.linalg.solve(moment.numpy() + damp, (target + w @ damp).T).T
    found = drifted_target(weight, cross.value(), upper, 1.0, cross.residual())
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-2, atol=1e-3)
