import numpy as np
import pytest
import torch
from torch import Tensor

from qdc.numerics.factor import FactorizationFailed, factorize
from qdc.numerics.feedback import quantize_blocks


def random_moment(columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(3 * columns, columns, generator=generator)
    mixed = inputs @ torch.randn(columns, columns, generator=generator)
    return mixed.T @ mixed / mixed.shape[0]


def with_eigenvalue(smallest: float) -> Tensor:
    rotation: Tensor = torch.linalg.qr(random_moment(8).double())[0]
    values = torch.tensor([1.0] * 7 + [smallest], dtype=torch.float64)
    return ((rotation * values) @ rotation.T).float()


@pytest.mark.parametrize("damp", [0.0, 0.01, 0.5])
def test_is_the_upper_cholesky_factor_of_the_damped_inverse(damp: float) -> None:
    moment = random_moment(12)
    factor = factorize(moment, damp)
    damped = moment.double().numpy()
    damped = damped + damp * np.trace(damped) / 12 * np.eye(12)
    expected = np.linalg.cholesky(np.linalg.inv(damped)).T
    np.testing.assert_allclose(factor.upper.numpy(), expected, rtol=1e-4, atol=1e-5)
    assert factor.upper.dtype == torch.float32
    assert torch.equal(factor.upper, factor.upper.triu())
    assert (factor.damp, factor.attempts) == (damp, 1)
    assert not factor.dead.any()


def test_leaves_the_moment_alone_so_that_layers_can_share_it() -> None:
    shared = random_moment(8)
    shared[3], shared[:, 3] = 0, 0
    before = shared.clone()
    weights = [torch.randn(4, 8, generator=torch.Generator().manual_seed(s)) for s in (1, 2, 3)]

    def quantized(weight: Tensor, moment: Tensor) -> Tensor:
        parts = (slice(0, 4), slice(4, 8))
        return quantize_blocks(
            weight, factorize(moment).upper, parts, "exact", lambda _, block: block.round()
        )

    for weight in weights:
        assert torch.equal(quantized(weight, shared), quantized(weight, before.clone()))
    assert torch.equal(shared, before)


def test_dead_inputs_get_the_mean_live_diagonal() -> None:
    moment = random_moment(6)
    moment[[1, 3]], moment[:, [1, 3]] = 0, 0
    factor = factorize(moment, 0.01)
    live = [0, 2, 4, 5]
    mean = moment.diagonal()[live].mean().item()
    assert factor.dead.tolist() == [False, True, False, True, False, False]
    assert factor.upper[1, 1].item() == pytest.approx((1.01 * mean) ** -0.5, rel=1e-5)
    # A dead input neither causes nor receives compensation, nor changes that of the others.
    assert factor.upper[1].count_nonzero() == factor.upper[:, 1].count_nonzero() == 1
    alone = factorize(moment[live][:, live], 0.01)
    torch.testing.assert_close(factor.upper[live][:, live], alone.upper)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_is_scale_invariant_even_with_dead_inputs(scale: float) -> None:
    moment = random_moment(6)
    moment[2], moment[:, 2] = 0, 0
    torch.testing.assert_close(
        factorize(moment * scale).upper * scale**0.5, factorize(moment).upper, rtol=1e-5, atol=1e-6
    )


def test_all_dead_is_the_identity() -> None:
    factor = factorize(torch.zeros(3, 3))
    assert torch.equal(factor.upper, torch.eye(3))
    assert factor.dead.all()
    assert factor.attempts == 0


def test_damps_more_until_it_succeeds() -> None:
    moment = with_eigenvalue(-0.05)  # mean diagonal 0.87: a share of 0.01 is not enough, 0.1 is
    factor = factorize(moment, 0.01)
    assert factor.attempts == 2
    assert factor.damp == pytest.approx(0.1)
    damped = moment.double() + 0.1 * moment.double().diagonal().mean() * torch.eye(8)
    torch.testing.assert_close(
        factor.upper.T @ factor.upper @ damped.float(), torch.eye(8), rtol=1e-4, atol=1e-4
    )
    assert factorize(moment, 1e-6).attempts == 6


def test_gives_up_after_the_last_attempt() -> None:
    with pytest.raises(FactorizationFailed, match="indefinite"):
        factorize(with_eigenvalue(-0.05), 0.01, attempts=1)
    with pytest.raises(FactorizationFailed, match="indefinite"):
        factorize(with_eigenvalue(-0.05), 0.0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_refuses_entries_that_are_not_finite(bad: float) -> None:
    moment = torch.eye(3)
    moment[0, 1] = moment[1, 0] = bad
    with pytest.raises(FactorizationFailed, match="NaN"):
        factorize(moment)


@pytest.mark.parametrize(
    "moment", [-torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])], ids=["negative", "no energy"]
)
def test_refuses_what_is_no_moment(moment: Tensor) -> None:
    with pytest.raises(FactorizationFailed, match="not positive"):
        factorize(moment)


def test_refuses_bad_arguments() -> None:
    with pytest.raises(ValueError, match="square"):
        factorize(torch.zeros(2, 3))
    with pytest.raises(ValueError, match="damp"):
        factorize(torch.eye(2), -0.1)
    with pytest.raises(ValueError, match="damp"):
        factorize(torch.eye(2), float("nan"))
    with pytest.raises(ValueError, match="attempts"):
        factorize(torch.eye(2), attempts=0)
