import pytest
import torch

from qdc.numerics.error import block_errors, relative_output_error


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


PARTS = (slice(0, 2), slice(2, 5), slice(5, 6))


def test_blocks_share_the_error_as_the_outputs_do() -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    inputs[:, 3] += inputs[:, 0]
    weight = torch.randn(4, 6, generator=generator)
    wrong = weight - weight.round()
    whole = (inputs @ wrong.T.double()).T
    total = (inputs @ weight.T.double()).square().sum()
    expected = []
    for part in PARTS:
        own = (inputs[:, part] @ wrong[:, part].T.double()).T
        expected.append(float((own * whole).sum() / total))
    found = block_errors(weight, weight.round(), inputs.T @ inputs, PARTS)
    assert found.blocks == pytest.approx(tuple(expected), rel=1e-6)
    assert sum(found.blocks) == pytest.approx(found.total, rel=1e-12)
    alone = relative_output_error(weight, weight.round(), inputs.T @ inputs)
    assert found.total == pytest.approx(alone, rel=1e-12)


def test_a_block_that_undoes_the_error_of_another_halves_its_share() -> None:
    # Both inputs are alike, so the error of the first is undone by that of the second but for half.
    weight, error = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, -0.5]])
    parts = (slice(0, 1), slice(1, 2))
    found = block_errors(weight, weight - error, torch.ones(2, 2), parts)
    assert found.total == 0.25 / 4
    assert found.blocks == (0.5 / 4, -0.25 / 4)


def test_blocks_of_a_layer_without_error_or_output() -> None:
    zero, one = torch.zeros(1, 6), torch.ones(1, 6)
    assert block_errors(one, one, torch.eye(6), PARTS) == (0.0, (0.0, 0.0, 0.0))
    assert block_errors(zero, one, torch.eye(6), PARTS) == (float("inf"), ())


@pytest.mark.parametrize(("weights", "inputs"), [(1e10, 1e20), (1e-15, 1e-15), (1, 1)])
def test_holds_at_the_ends_of_fp32_and_where_outputs_cancel(weights: float, inputs: float) -> None:
    # All inputs move together, a thousand times as far as each alone, and rows add up to 0.
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(2)).round(decimals=1)
    weight[:, 1::2] = -weight[:, ::2]
    moment = (torch.eye(64) + 2.0**20) * inputs
    weight *= weights
    found = block_errors(weight, weight / 2, moment, (slice(0, 32), slice(32, 64)))
    exact, metric = weight.double(), moment.double()
    error, output = exact - (weight / 2).double(), ((exact @ metric) * exact).sum()
    assert found.total == pytest.approx(float(((error @ metric) * error).sum() / output), rel=1e-6)
