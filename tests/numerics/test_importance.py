import statistics

import numpy as np
import pytest
import torch

from qdc.numerics.factor import factorize
from qdc.numerics.importance import block_scores, importance, outlier_weight


def test_is_twice_the_loss_increase_of_zeroing_a_weight() -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(40, 6, generator=generator) @ torch.randn(6, 6, generator=generator)
    curvature = 2 * inputs.T @ inputs / 40
    weight = torch.randn(3, 6, generator=generator)
    found = importance(weight, factorize(curvature, 0.0).upper)
    matrix = curvature.double().numpy()
    for i in range(3):
        for j in range(6):
            change = np.zeros(6)
            change[j] = -weight[i, j].item()
            after = slice(j + 1, 6)
            change[after] = np.linalg.solve(matrix[after, after], -matrix[after, j] * change[j])
            increase = 0.5 * change @ matrix @ change
            assert found[i, j].item() == pytest.approx(2 * increase, rel=1e-3)


def test_scores_add_up_each_block() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    upper = torch.tensor([[1.0, 9.0, 9.0], [0.0, 2.0, 9.0], [0.0, 0.0, 0.5]])
    assert block_scores(weight, upper, (slice(0, 2), slice(2, 3))) == (17 + 29 / 4, 4 * 45.0)


@pytest.mark.parametrize("sigma", [0.0, 1.0, 2.0, 3.0])
def test_flags_by_the_unbiased_z_score_of_the_block(sigma: float) -> None:
    block = torch.randn(9, 7, generator=torch.Generator().manual_seed(5)).exp().square()
    values = block.flatten().tolist()
    mean, deviation = statistics.fmean(values), statistics.stdev(values)
    expected = [4.0 if (value - mean) / deviation > sigma else 1.0 for value in values]
    assert expected.count(4.0) > 0
    assert torch.equal(outlier_weight(block, sigma, 1.0), torch.ones(9, 7))
    assert outlier_weight(block, sigma, 4.0).flatten().tolist() == expected


def test_deviation_is_the_unbiased_one() -> None:
    # z of the largest is 1.5 with the unbiased deviation, 1.73 with the biased one.
    block = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    assert outlier_weight(block, 1.6, 3.0).tolist() == [[1, 1, 1, 1]]
    assert outlier_weight(block, 1.4, 3.0).tolist() == [[1, 1, 1, 3]]


def test_is_one_sided() -> None:
    block = torch.full((4, 16), 10.0)
    block[0, 0] = 0.0
    assert torch.equal(outlier_weight(block, 2.0, 3.0), torch.ones(4, 16))


def test_does_not_depend_on_the_scale() -> None:
    block = torch.randn(8, 16, generator=torch.Generator().manual_seed(6)).square()
    flagged = outlier_weight(block, 2.0, 3.0)
    assert flagged.max() == 3
    assert torch.equal(flagged, outlier_weight(block * 2.0**-60, 2.0, 3.0))


@pytest.mark.parametrize("value", [0.0, 0.1, 1e-12, 3e7])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (13, 11)])
def test_equal_values_hold_no_outlier(value: float, shape: tuple[int, int]) -> None:
    assert torch.equal(outlier_weight(torch.full(shape, value), 0.0, 3.0), torch.ones(shape))


@pytest.mark.parametrize(
    ("sigma", "weight"),
    [(-1.0, 3.0), (float("nan"), 3.0), (2.0, 0.0), (2.0, -1.0), (2.0, float("inf"))],
)
def test_refuses_options_without_meaning(sigma: float, weight: float) -> None:
    with pytest.raises(ValueError, match=r"sigma|outlier weight"):
        outlier_weight(torch.ones(2, 2), sigma, weight)
