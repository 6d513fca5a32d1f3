"""Rounding to binary levels: the nearest ones, and gradients through them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.rounding import latent_start, nearest_signs, round_to_levels

ROWS, BLOCKS, WIDTH = 3, 2, 5


def scales(order: int, seed: int, *, positive: bool = False) -> tuple[Tensor, Tensor]:
    """Row scales f64[K, n, b] and column scales f64[K, b, g], of any sign and order of size."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(order, ROWS, BLOCKS, generator=generator, dtype=torch.float64)
    columns = torch.randn(order, BLOCKS, WIDTH, generator=generator, dtype=torch.float64)
    return (rows.abs(), columns.abs()) if positive else (rows, columns)


def random(seed: int, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def levels(rows: Tensor, columns: Tensor) -> Tensor:
    """All levels of every weight, f64[2^K, n, b, g]."""
    parts = rows[..., None] * columns[:, None]
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * len(parts))
    return torch.einsum("pk,knbg->pnbg", signs.reshape(-1, len(parts)), parts)


def written_out(signs: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.einsum("knb,kbg,knbg->nbg", rows, columns, signs)


@given(st.integers(1, 4), st.integers(0, 999), st.booleans(), st.booleans())
def test_the_signs_are_those_of_the_nearest_level(
    order: int, seed: int, positive: bool, zeros: bool
) -> None:
    rows, columns = scales(order, seed, positive=positive)
    if zeros:
        rows[-1, 0], columns[0, 1, :2] = 0, 0
    latent = 2 * random(seed + 1, ROWS, BLOCKS, WIDTH)
    signs = nearest_signs(latent, rows, columns)
    assert signs.shape == (order, ROWS, BLOCKS, WIDTH)
    assert set(signs.flatten().tolist()) <= {-1, 1}
    found = (latent - written_out(signs, rows, columns)).abs()
    least = (latent - levels(rows, columns)).abs().amin(0)
    torch.testing.assert_close(found, least, rtol=0, atol=1e-12)


@given(st.integers(1, 4), st.integers(0, 999))
def test_latent_weights_start_at_the_given_signs(order: int, seed: int) -> None:
    rows, columns = scales(order, seed)
    signs = random(seed + 1, order, ROWS, BLOCKS, WIDTH).sign()
    weight = random(seed + 2, ROWS, BLOCKS, WIDTH)
    latent = latent_start(weight, signs, rows, columns)
    level = written_out(signs, rows, columns)
    again = written_out(nearest_signs(latent, rows, columns), rows, columns)
    torch.testing.assert_close(again, level, rtol=0, atol=1e-12)
    assert bool(((latent - level).abs() <= (weight - level).abs() + 1e-12).all())


def loss(latent: Tensor, rows: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    return (weights * round_to_levels(latent, rows, columns)).sum()


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_gradients_of_the_scales_are_those_of_finite_differences(order: int) -> None:
    rows, columns = scales(order, order)
    signs = random(1, order, ROWS, BLOCKS, WIDTH).sign()
    latent = latent_start(random(2, ROWS, BLOCKS, WIDTH), signs, rows, columns)
    weights = random(3, ROWS, BLOCKS, WIDTH)
    rows.requires_grad_()
    columns.requires_grad_()
    torch.autograd.backward(loss(latent, rows, columns, weights))
    step = 1e-6
    for place, scale in enumerate((rows, columns)):
        numeric = torch.zeros_like(scale)
        for index in range(scale.numel()):
            ends = []
            for move in (step, -step):
                moved = [rows.detach().clone(), columns.detach().clone()]
                moved[place].flatten()[index] += move
                ends.append(float(loss(latent, moved[0], moved[1], weights)))
            numeric.flatten()[index] = (ends[0] - ends[1]) / (2 * step)
        torch.testing.assert_close(scale.grad, numeric, rtol=1e-6, atol=1e-8)


@given(st.integers(1, 4), st.integers(0, 99))
def test_the_gradient_goes_straight_through_to_the_latent_weight(order: int, seed: int) -> None:
    rows, columns = scales(order, seed)
    latent = random(seed, ROWS, BLOCKS, WIDTH).requires_grad_()
    weights = random(seed + 1, ROWS, BLOCKS, WIDTH)
    torch.autograd.backward(loss(latent, rows, columns, weights))
    assert latent.grad is not None
    assert torch.equal(latent.grad, weights)


@given(st.integers(1, 4), st.integers(0, 99))
def test_a_rounded_weight_is_rounded_to_itself(order: int, seed: int) -> None:
    rows, columns = scales(order, seed)
    once = round_to_levels(random(seed, ROWS, BLOCKS, WIDTH), rows, columns)
    torch.testing.assert_close(round_to_levels(once, rows, columns), once, rtol=0, atol=1e-12)
