import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from qdc.numerics import products
from qdc.numerics.products import has_matrices, linear, product, undisturbed, wide_products

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


@torch.no_grad()
def test_who_holds_no_matrices_is_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4))
    assert has_matrices(nn.Linear(2, 3))
    assert has_matrices(lambda tokens: tokens)
    assert not has_matrices(plain)
    assert not has_matrices(nn.Linear(2, 3).bfloat16())
    asked: list[object] = []
    monkeypatch.setattr(products, "linear", lambda *given: asked.append(given))
    module, inputs = nn.Linear(130, 131), normal(129, 130)
    with wide_products("cpu", needed=False):
        module(inputs)
    with wide_products("cpu"), undisturbed():
        module(inputs)
    assert not asked
    with wide_products("cpu"):
        module(inputs)
    assert len(asked) == 1


@pytest.mark.parametrize("shape", [(129, 130), (3, 43, 130)])
def test_derivatives_flow(shape: tuple[int, ...]) -> None:
    module, inputs = nn.Linear(130, 131), normal(*shape).requires_grad_()
    slope = normal(*shape[:-1], 131)
    leaves = (inputs, module.weight, module.bias)
    expected = torch.autograd.grad(module(inputs), leaves, slope)
    with wide_products("cpu"):
        found = torch.autograd.grad(module(inputs), leaves, slope)
        one = torch.autograd.grad(module(inputs), module.bias, slope)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(one[0], found[2])


def test_derivatives_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []

    def taken(inputs: Tensor, weight: Tensor, *others: object) -> Tensor:
        called.append((tuple(inputs.shape), tuple(weight.shape)))
        return nn.functional.linear(inputs, weight)

    monkeypatch.setattr(products, "_wide", lambda: taken)
    inputs, weight = normal(129, 130).requires_grad_(), normal(131, 130).requires_grad_()
    linear(inputs, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert called == [
        ((129, 130), (131, 130)),
        ((129, 131), (130, 131)),
        ((131, 129), (130, 129)),
    ]
    inputs.grad = None
    linear(inputs, weight.detach()).sum().backward()  # type: ignore[no-untyped-call]
    assert len(called) == 5


def test_second_derivatives_are_refused() -> None:
    inputs = normal(129, 130).requires_grad_()
    (slope,) = torch.autograd.grad(
        linear(inputs, normal(131, 130)).square().sum(), inputs, create_graph=True
    )
    if products._wide() is not None:
        with pytest.raises(RuntimeError, match="once_differentiable"):
            slope.sum().backward()  # type: ignore[no-untyped-call]


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


def test_takes_any_bias_that_torch_takes() -> None:
    # oneDNN reads a bias with gaps, or one that is repeated, as if it had none.
    inputs, weight = normal(129, 130), normal(131, 130)
    biases = (normal(262)[::2], normal(1).expand(131), normal(1), normal(1, 131))
    for bias in biases:
        expected = inputs.double() @ weight.double().T + bias.double()
        torch.testing.assert_close(linear(inputs, weight, bias), expected.float())


def test_what_does_not_fit_is_told_in_the_words_of_torch() -> None:
    with pytest.raises(RuntimeError, match="129x130 and 65x131"):
        linear(normal(129, 130), normal(131, 65))
    with pytest.raises(RuntimeError, match=r"\(131\).*\(130\)"):
        linear(normal(129, 130), normal(131, 130), normal(130))


def test_tangents_of_forward_differentiation_flow() -> None:
    inputs, weight, tangent = normal(129, 130), normal(131, 130), normal(130, 129).T
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs, tangent)  # type: ignore[no-untyped-call]
        moved = forward_ad.unpack_dual(linear(dual, weight)).tangent  # type: ignore[no-untyped-call]
    torch.testing.assert_close(moved, tangent @ weight.T)


def test_autocast_holds() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(normal(129, 130), normal(131, 130)).dtype == torch.bfloat16


@torch.no_grad()
def test_calls_by_name_within_a_block() -> None:
    module, inputs, named = nn.Linear(130, 131), normal(129, 130), nn.functional.linear
    with wide_products("cpu"):
        found = named(input=inputs, weight=module.weight, bias=module.bias)
        assert torch.equal(found, module(inputs))


@pytest.mark.slow  # imports torch's compiler
@torch.no_grad()
def test_compiled_modules_have_no_breaks_within_a_block() -> None:
    module, inputs = nn.Linear(130, 131), normal(129, 130)
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    with wide_products("cpu"):
        torch.testing.assert_close(compiled(inputs), module(inputs))
