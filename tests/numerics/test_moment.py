from typing import Any

import pytest
import torch

from qdc.numerics import moment
from qdc.numerics.asymmetry import CrossMomentAccumulator
from qdc.numerics.moment import MomentAccumulator


def test_large_batches_are_added_in_parts(monkeypatch: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    now, before, weights = torch.randint(1, 9, (3, 3, 7), generator=generator).float()
    found = []
    for tokens in (moment.TOKENS, 4):
        monkeypatch.setattr(moment, "TOKENS", tokens)
        plain, cross = MomentAccumulator(5), CrossMomentAccumulator(5, rows=5)
        x, x0 = (torch.stack([t + k for k in range(5)], -1) for t in (now, before))
        plain.add(x, weights)
        cross.add(x, x0, weights)
        cross.add_residual(x, x, x0, weights)
        found.append((plain.value(), cross.value(), cross.residual(), plain.weight, cross.weight))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
    assert found[0][3] == found[0][4] == float(weights.sum())


def test_is_the_mean_outer_product_of_all_tokens() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randint(-8, 9, (2, 5, 3), generator=generator).float()
    accumulator = MomentAccumulator(3)
    accumulator.add(inputs)
    tokens = [[int(x) for x in token] for sample in inputs.tolist() for token in sample]
    expected = [[sum(t[i] * t[j] for t in tokens) / 10 for j in range(3)] for i in range(3)]
    assert accumulator.tokens == 10
    torch.testing.assert_close(accumulator.value(), torch.tensor(expected))


def test_does_not_depend_on_the_batches() -> None:
    inputs = torch.arange(24.0).reshape(6, 4)
    whole, parts = MomentAccumulator(4), MomentAccumulator(4)
    whole.add(inputs)
    parts.add(inputs[0])
    parts.add(inputs[1:1])
    parts.add(inputs[1:].reshape(1, 5, 4))
    assert parts.tokens == whole.tokens == 6
    assert torch.equal(parts.value(), whole.value())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_sums_in_fp32_whatever_the_inputs(dtype: torch.dtype) -> None:
    accumulator = MomentAccumulator(2)
    # bf16 cannot count beyond 256, and 300^2 overflows fp16.
    accumulator.add(torch.ones(301, 2, dtype=dtype) * torch.tensor([1, 300], dtype=dtype))
    value = accumulator.value()
    assert value.dtype == torch.float32
    assert value.tolist() == [[1.0, 300.0], [300.0, 90000.0]]


def test_keeps_inputs_beyond_half_precision() -> None:
    accumulator = MomentAccumulator(1)
    accumulator.add(torch.tensor([[2049.0]]))
    assert accumulator.value().item() == 2049.0**2


def test_is_exactly_symmetric() -> None:
    inputs = torch.randn(77, 33, generator=torch.Generator().manual_seed(1))
    accumulator = MomentAccumulator(33)
    accumulator.add(inputs)
    accumulator.add(inputs * 3.7)
    value = accumulator.value()
    assert torch.equal(value, value.T)


def test_value_is_not_the_running_sum() -> None:
    accumulator = MomentAccumulator(2)
    accumulator.add(torch.ones(1, 2))
    accumulator.value().zero_()
    assert accumulator.value().tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_refuses_zero_tokens_and_other_widths() -> None:
    accumulator = MomentAccumulator(3)
    with pytest.raises(ValueError, match="zero tokens"):
        accumulator.value()
    with pytest.raises(ValueError, match="expected"):
        accumulator.add(torch.ones(3, 2))
    with pytest.raises(ValueError, match="expected"):
        accumulator.add(torch.tensor(1.0))
    with pytest.raises(ValueError, match="at least one column"):
        MomentAccumulator(0)


def test_weights_count_a_token_as_often() -> None:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(2, 6, 4, generator=generator)
    weights = torch.randint(0, 4, (2, 6), generator=generator).float()
    weighted, repeated = MomentAccumulator(4), MomentAccumulator(4)
    weighted.add(inputs, weights)
    repeated.add(inputs.reshape(-1, 4).repeat_interleave(weights.flatten().long(), 0))
    assert weighted.tokens == 12
    assert weighted.weight == repeated.weight == weights.sum()
    torch.testing.assert_close(weighted.value(), repeated.value())
    assert torch.equal(weighted.value(), weighted.value().T)


def test_equal_weights_change_nothing_but_rounding() -> None:
    inputs = torch.randn(30, 5, generator=torch.Generator().manual_seed(3))
    plain, weighted = MomentAccumulator(5), MomentAccumulator(5)
    plain.add(inputs)
    weighted.add(inputs, torch.full((30,), 7.0))
    torch.testing.assert_close(plain.value(), weighted.value())
    assert plain.weight == plain.tokens


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_refuses_senseless_weights(weight: float) -> None:
    accumulator = MomentAccumulator(2)
    with pytest.raises(ValueError, match="negative or not finite"):
        accumulator.add(torch.ones(3, 2), torch.tensor([1, weight, 1]))
    with pytest.raises(ValueError, match="expected weights"):
        accumulator.add(torch.ones(3, 2), torch.ones(2))
    accumulator.add(torch.ones(3, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="zero tokens"):
        accumulator.value()


def test_the_order_of_the_batches_changes_no_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [10.0 ** (k % 4) * torch.randn(40, 48, generator=generator) for k in range(12)]
    forwards, backwards = MomentAccumulator(48), MomentAccumulator(48)
    for batch, other in zip(batches, reversed(batches), strict=True):
        forwards.add(batch)
        backwards.add(other)
    assert torch.equal(forwards.value(), backwards.value())


def test_wide_sums_are_made_by_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(30, 21, generator=torch.Generator().manual_seed(0))
    whole, parts = MomentAccumulator(21), MomentAccumulator(21)
    whole.add(inputs)
    monkeypatch.setattr("qdc.numerics.moment.ROWS", 4)
    parts.add(inputs)
    torch.testing.assert_close(parts.value(), whole.value(), rtol=1e-5, atol=1e-5)
    assert torch.equal(parts.value(), parts.value().T)
    parts.clear()
    assert parts.tokens == 30
