import pytest
import torch
from torch import Tensor, nn

from qdc.numerics import products
from qdc.numerics.products import linear, product, wide_products

SHAPES = [(2, 3, 5), (129, 130, 131)]
"""Rows, columns and results: too small for another library, and large enough for it."""


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("rows", "columns", "results"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_multiplies_in_fp32(rows: int, columns: int, results: int, biased: bool) -> None:
    inputs, weight, bias = normal(rows, columns), normal(results, columns), normal(results)
    found = linear(inputs, weight, bias if biased else None)
    exact = inputs.double() @ weight.double().T + (bias.double() if biased else 0)
    # A product in bf16 would be off by 1e-2.
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=2e-5)
    assert found.dtype == torch.float32


def test_takes_any_strides_and_several_leading_dimensions() -> None:
    left, right = normal(130, 3, 60).transpose(0, 1), normal(131, 60).T
    for part in (left, left[:, ::2], left[1:]):
        expected = (part.double() @ right.double()).float()
        torch.testing.assert_close(product(part, right), expected, rtol=0, atol=1e-4)
    wide = normal(200, 400)[:, 200:]
    torch.testing.assert_close(product(wide.T, wide), wide.T @ wide, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_leaves_other_dtypes_to_torch(dtype: torch.dtype) -> None:
    inputs, weight = normal(129, 130).to(dtype), normal(131, 130).to(dtype)
    assert torch.equal(linear(inputs, weight), nn.functional.linear(inputs, weight))


@torch.no_grad()
def test_modules_and_exported_graphs_multiply_so_within_a_block() -> None:
    module, inputs = nn.Linear(130, 131), normal(129, 130)
    expected = linear(inputs, module.weight, module.bias)
    with wide_products("cpu"):
        assert torch.equal(module(inputs), expected)
        call = torch.ops.aten.linear.default
        assert torch.equal(call(inputs, module.weight, module.bias), expected)
    torch.testing.assert_close(module(inputs), expected)


def test_derivatives_flow() -> None:
    module, inputs = nn.Linear(130, 131), normal(129, 130)
    with wide_products("cpu"):
        module(inputs).sum().backward()
    assert module.weight.grad is not None
    torch.testing.assert_close(module.weight.grad[0], inputs.sum(0))


def test_parts_of_matrices_are_handed_on_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    # oneDNN takes a weight with gaps between its rows too, and is 600 times as slow.
    given: list[Tensor] = []

    def taken(inputs: Tensor, weight: Tensor, *others: object) -> Tensor:
        given.append(weight)
        return nn.functional.linear(inputs, weight)

    monkeypatch.setattr(products, "_wide", lambda: taken)
    values = normal(130, 400)
    found = product(values[:, :150].T, values[:, 150:])
    torch.testing.assert_close(found, values[:, :150].T @ values[:, 150:])
    assert given
    assert all(weight.is_contiguous() or weight.T.is_contiguous() for weight in given)
