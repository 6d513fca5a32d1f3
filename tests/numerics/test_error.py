import pytest
import torch

from qdc.numerics.error import relative_output_error


def test_is_the_share_of_the_squared_output() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 6, generator=generator) * torch.arange(1.0, 7.0)
    weight = torch.randn(4, 6, generator=generator)
    dense = weight.round()
    outputs, wrong = inputs @ weight.T, inputs @ dense.T
    expected = ((outputs - wrong).square().sum() / outputs.square().sum()).item()
    moment = inputs.T @ inputs / 50
    assert relative_output_error(weight, dense, moment) == pytest.approx(expected, rel=1e-5)


def test_ends_of_the_scale() -> None:
    weight, moment = torch.tensor([[1.0, 2.0]]), torch.eye(2)
    assert relative_output_error(weight, weight, moment) == 0.0
    assert relative_output_error(weight, torch.zeros(1, 2), moment) == 1.0
    assert relative_output_error(weight, -weight, moment) == 4.0


def test_a_layer_without_output() -> None:
    zero, one = torch.zeros(1, 2), torch.ones(1, 2)
    assert relative_output_error(zero, zero, torch.eye(2)) == 0.0
    assert relative_output_error(zero, one, torch.eye(2)) == float("inf")
    assert relative_output_error(one, zero, torch.zeros(2, 2)) == 0.0


def test_survives_cancellation() -> None:
    # Almost perfectly correlated inputs: the two errors cancel down to a share of 2.5e-9.
    moment = torch.tensor([[1.0, 1.0], [1.0, 1.0]]) + 1e-2 * torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    weight, error = torch.tensor([[1000.0, 0.0]]), torch.tensor([[0.5, -0.5]])
    share = relative_output_error(weight, weight - error, moment)
    assert share == pytest.approx(0.25e-2 / 1e6, rel=1e-4)
