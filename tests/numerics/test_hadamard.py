"""Random rotations: the matrices that the literature names, orthogonal, undone exactly."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.factor import factorize
from qdc.numerics.hadamard import (
    SEEDS,
    RandomHadamard,
    _step_by_step,
    random_seed,
    random_signs,
    transform_size,
    walsh_hadamard,
)
from qdc.numerics.rotated import InputSpace, balancing_scale
from tests.support.units import correlated_moment, noise


def hadamard(size: int) -> np.ndarray:
    """By Kronecker products of [[1, 1], [1, -1]], as Sylvester has it."""
    found = np.ones((1, 1))
    while len(found) < size:
        found = np.kron(np.array([[1, 1], [1, -1]]), found)
    return found


@pytest.mark.parametrize("size", [1, 2, 8, 64])
def test_is_sylvesters_matrix(size: int) -> None:
    found = walsh_hadamard(torch.eye(size, dtype=torch.float64), size)
    assert np.array_equal(found.numpy(), hadamard(size))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 100), st.integers(0, SEEDS - 1))
def test_rotations_are_orthogonal_and_undone(width: int, seed: int) -> None:
    rotation = RandomHadamard.of(width, seed)
    matrix = rotation.forward(torch.eye(width, dtype=torch.float64))
    identity = torch.eye(width, dtype=torch.float64)
    torch.testing.assert_close(matrix @ matrix.T, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(rotation.inverse(matrix), identity, rtol=0, atol=1e-12)
    values = noise(3, width)
    torch.testing.assert_close(
        rotation.inverse(rotation.forward(values)), values, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    ("width", "size"), [(4096, 4096), (576, 64), (160, 32), (18944, 512), (7, 1)]
)
def test_blocks_are_the_largest_power_of_two_that_divides(width: int, size: int) -> None:
    assert transform_size(width) == size
    mixed = RandomHadamard.of(width, 0).forward(torch.eye(1, width))
    assert int((mixed != 0).sum()) == size


def test_signs_belong_to_the_seed_alone() -> None:
    assert torch.equal(random_signs(5, 3), random_signs(64, 3)[:5])
    assert not torch.equal(random_signs(64, 3), random_signs(64, 4))
    assert random_seed("a", 1) != random_seed("a", 2)
    assert random_signs(12, 7).tolist() == [-1, -1, -1, -1, -1, -1, -1, 1, 1, 1, 1, -1]


def test_other_sizes_are_refused() -> None:
    for size in (0, 3, 16):
        with pytest.raises(ValueError, match="no power of two"):
            walsh_hadamard(torch.ones(2, 24), size)
    with pytest.raises(ValueError, match="at least one column"):
        transform_size(0)


def loss(error: Tensor, upper: Tensor) -> float:
    moment = torch.linalg.inv(upper.double().T @ upper.double())
    return float(((error.double() @ moment) * error).sum())


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("rescaled", [False, True])
def test_the_loss_is_that_of_the_unrotated_error(reverse: bool, rescaled: bool) -> None:
    weight, upper = noise(6, 36), factorize(correlated_moment(36)).upper
    scale = balancing_scale(weight, upper) if rescaled else None
    space = InputSpace(RandomHadamard.of(36, 5), scale, padding=4, reverse=reverse)
    turned = space.factor(upper)
    assert torch.equal(turned, turned.triu())
    assert bool((turned.diagonal() > 0).all())
    # Errors in the columns that pad cost next to nothing.
    error = space.weight(weight) + 0.0
    error[:, :4] += 0.1 if reverse else 0.0
    assert loss(error, turned) == pytest.approx(loss(weight, upper), rel=1e-3)


def test_outputs_and_the_drift_are_those_of_unrotated_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    now, before = torch.randn(2, 50, 24, generator=generator).double()
    weight = noise(5, 24).double()
    scale = torch.linspace(0.5, 2, 24).double()
    space = InputSpace(RandomHadamard.of(24, 1), scale, reverse=True)
    inputs, first = (space.weight(x / scale / scale) for x in (now, before))
    torch.testing.assert_close(inputs @ space.weight(weight).T, now @ weight.T)
    cross = (before - now).T @ now
    torch.testing.assert_close(space.cross(cross), (first - inputs).T @ inputs)


def test_the_balance_meets_in_the_middle() -> None:
    weight, upper = noise(6, 16), factorize(correlated_moment(16)).upper
    weight[:, 3] = 0
    scale = balancing_scale(weight, upper).double()
    moment = torch.linalg.inv(upper.double().T @ upper.double()).diagonal() / scale**2
    energy = weight.double().square().sum(0) * scale**2
    shares = (moment / energy)[torch.arange(16) != 3]
    torch.testing.assert_close(shares, shares[0].expand(15), rtol=1e-5, atol=0)
    assert scale[3] == 1


@pytest.mark.parametrize("shape", [(0, 8), (1, 8), (5, 1), (300, 24), (2, 130, 64)])
def test_sums_are_those_of_the_definition_bit_for_bit(shape: tuple[int, ...]) -> None:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    size = transform_size(shape[-1])
    given, expected = values.clone(), _step_by_step(values, size)
    assert torch.equal(walsh_hadamard(values, size), expected)
    assert torch.equal(values, given)
    assert torch.equal(walsh_hadamard(values.double(), size), _step_by_step(values.double(), size))


def test_derivatives_flow_through_the_transform() -> None:
    values = torch.randn(3, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: walsh_hadamard(v, 4), values)
    assert torch.autograd.gradgradcheck(lambda v: walsh_hadamard(v, 4).square(), values)


def test_transforms_of_torch_go_through_it_too() -> None:
    """Their values take no ``out=``, and know no function that is made for plain gradients."""
    values = torch.randn(3, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def turned(rows: Tensor) -> Tensor:
        return walsh_hadamard(rows, 4)

    assert torch.equal(torch.vmap(turned)(values), turned(values))
    found = torch.func.jvp(turned, (values,), (values + 1,))
    assert torch.equal(found[0], turned(values))
    assert torch.equal(found[1], turned(values + 1))
    torch.testing.assert_close(torch.func.vjp(turned, values)[1](values)[0], turned(values))
