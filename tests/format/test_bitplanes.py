"""The bit-plane codec: exact inverses, its bytes, hostile settings, and the form gradients move."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.bitplanes import BitPlanes, pack_planes, unpack_planes
from qdc.format.relaxation import TrainableKind
from qdc.format.relaxedplanes import RelaxedPlanes
from qdc.numerics.blocks import block_slices
from qdc.numerics.planegrid import Coefficients, PlaneGrid, alternate, stored_coefficients
from tests.support.units import noise


def drawn(codec: BitPlanes, seed: int) -> dict[str, Tensor]:
    """Working tensors at random."""
    generator = torch.Generator().manual_seed(seed)
    shape = (codec.rows, codec.columns)
    found = {
        "codes": torch.randint(0, 1 << codec.planes, shape, generator=generator).to(torch.uint8),
        "coefficient": torch.randn(
            codec.rows, codec.planes, codec.groups, generator=generator
        ).half(),
    }
    if codec.offset:
        found["offset"] = torch.randn(codec.rows, codec.groups, generator=generator).half()
    return found


@given(
    rows=st.integers(1, 5),
    columns=st.integers(1, 70),
    group=st.sampled_from([8, 16, 40]),
    planes=st.integers(1, 4),
    offset=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_stored_and_working_form_are_the_same_weight(
    rows: int, columns: int, group: int, planes: int, offset: bool, seed: int
) -> None:
    codec = BitPlanes(rows=rows, columns=columns, group=group, planes=planes, offset=offset)
    working = drawn(codec, seed)
    stored = codec.pack_exactly(working, "q")
    again = codec.unpack(stored)
    assert again.keys() == working.keys()
    assert all(torch.equal(again[suffix], working[suffix]) for suffix in working)
    nbytes = rows * (planes * -(-columns // 8) + 2 * (planes + offset) * -(-columns // group))
    assert codec.nbytes == sum(tensor.nbytes for tensor in stored.values()) == nbytes
    for part, index in zip(block_slices(columns, group), range(codec.groups), strict=True):
        numbers = Coefficients(
            working["coefficient"][:, :, index].float(),
            working["offset"][:, index].float() if offset else None,
        )
        written = PlaneGrid(numbers).write(working["codes"][:, part])
        assert torch.equal(codec.dense(working)[:, part], written)


def test_bits_lie_as_the_format_says() -> None:
    codes = torch.tensor([[1, 0, 2, 3, 0, 0, 0, 1, 2]], dtype=torch.uint8)
    packed = pack_planes(codes, 2)
    assert packed.tolist() == [[[0b10001001, 0], [0b00001100, 1]]]
    assert torch.equal(unpack_planes(packed, 9), codes)


@pytest.mark.parametrize(
    "wrong", [{"group": 12}, {"planes": 0}, {"planes": 5}, {"rows": 0}, {"extra": 1}]
)
def test_impossible_settings_are_refused(wrong: dict[str, int]) -> None:
    whole = {"rows": 1, "columns": 8, "group": 8, "planes": 2, "offset": True}
    with pytest.raises(ValueError, match="validation error"):
        BitPlanes.model_validate({**whole, **wrong})


def test_stored_tensors_that_do_not_fit_are_refused() -> None:
    codec = BitPlanes(rows=2, columns=16, group=8, planes=2, offset=True)
    stored = codec.pack(drawn(codec, 0))
    for suffix in stored:
        with pytest.raises(InvalidArtifact, match="stored tensors"):
            codec.check({k: v for k, v in stored.items() if k != suffix}, "q")
        with pytest.raises(InvalidArtifact, match=suffix):
            codec.check({**stored, suffix: stored[suffix][:1]}, "q")
    broken = stored["offset"].clone()
    broken[0, 0] = torch.nan
    with pytest.raises(InvalidArtifact, match="NaN"):
        codec.check({**stored, "offset": broken}, "q")


def relaxed(
    weight: Tensor, offset: bool, planes: int = 2, group: int = 16
) -> tuple[BitPlanes, dict[str, Tensor], RelaxedPlanes]:
    rows, columns = weight.shape
    codec = BitPlanes(rows=rows, columns=columns, group=group, planes=planes, offset=offset)
    grids = []
    for part in torch.split(weight, group, dim=1):
        size = part.abs().mean(1)
        numbers = torch.stack([size * 2.0**k for k in range(planes)], dim=1)
        start = stored_coefficients(numbers, -2 * size if offset else None)
        grids.append(alternate(part, PlaneGrid(start), 5)[0])
    parts = zip(grids, torch.split(weight, group, dim=1), strict=True)
    dense = torch.cat([grid.round(part) for grid, part in parts], dim=1)
    working = BitPlanes.working(grids, dense, group)
    return codec, working, codec.relax(working, weight)


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("planes", [1, 2, 3])
@pytest.mark.parametrize("columns", [16, 24, 5])
def test_it_starts_at_the_lowered_weight(columns: int, planes: int, offset: bool) -> None:
    codec, working, layer = relaxed(noise(5, columns), offset, planes)
    assert torch.equal(layer.dense(), codec.dense(working))
    again = layer.working()
    assert again.keys() == working.keys()
    assert all(again[name].dtype == working[name].dtype for name in working)
    assert torch.equal(codec.dense(again), codec.dense(working))
    assert torch.equal(again["coefficient"], working["coefficient"])


def test_codes_far_from_the_weights_are_kept() -> None:
    weight = noise(4, 24)
    codec, working, _ = relaxed(weight, True)
    codes = torch.randint(0, 4, working["codes"].shape, generator=torch.Generator().manual_seed(0))
    working["codes"] = codes.to(torch.uint8)
    layer = codec.relax(working, weight)
    assert torch.equal(layer.working()["codes"], working["codes"])
    moved = layer.latent.detach().reshape(4, -1)[:, :24] - layer.dense().detach()
    whole = weight - layer.dense().detach()
    assert bool((moved * whole >= 0).all())
    assert bool((moved.abs() <= 0.5001 * whole.abs()).all())
    assert float(moved.abs().max()) > 0


@pytest.mark.parametrize("offset", [True, False])
def test_gradients(offset: bool) -> None:
    codec, working, layer = relaxed(noise(3, 24), offset)
    seen = noise(3, 24, 1)
    torch.autograd.backward((layer.dense() * seen).sum())
    assert layer.latent.grad is not None
    latent = layer.latent.grad.reshape(3, -1)
    assert torch.equal(latent[:, :24], seen)
    assert not latent[:, 24:].any()
    # The weight is linear in the numbers of a group, so differences of fp32 are exact derivatives.
    assert layer.coefficient.grad is not None
    for row, k, group in itertools.product(range(3), range(2), range(2)):
        moved = {**working, "coefficient": working["coefficient"].clone()}
        moved["coefficient"][row, k, group] += 1
        step = moved["coefficient"][row, k, group] - working["coefficient"][row, k, group]
        change = ((codec.dense(moved) - codec.dense(working)) * seen).sum() / step.float()
        assert float(layer.coefficient.grad[2 * row + group, k]) == pytest.approx(
            float(change), rel=1e-3, abs=1e-4
        )
    if offset:
        assert layer.offset is not None
        assert layer.offset.grad is not None
        for row, group in itertools.product(range(3), range(2)):
            part = seen[row, 16 * group : 16 * (group + 1)]
            assert float(layer.offset.grad[2 * row + group]) == pytest.approx(float(part.sum()))


def test_descent_takes_the_output_nearer() -> None:
    weight, inputs = noise(8, 24), noise(64, 4, 2) @ noise(4, 24, 3)
    codec, working, layer = relaxed(weight, True)
    target = inputs @ weight.T
    before = float((inputs @ codec.dense(working).T - target).square().mean())
    rates = {TrainableKind.CODE: 0.06, TrainableKind.SCALE: 0.015}
    groups = [{"params": [t], "lr": rates[kind] * size} for kind, t, size in layer.trainable()]
    optimizer = torch.optim.Adam(groups)
    best, found = before, working
    for _ in range(60):
        optimizer.zero_grad()
        loss = (inputs @ layer.dense().T - target).square().mean()
        if loss.item() < best:
            best, found = loss.item(), layer.working()
        torch.autograd.backward(loss)
        optimizer.step()
    codec.pack_exactly(found, "q")
    assert float((inputs @ codec.dense(found).T - target).square().mean()) < 0.6 * before


def test_what_does_not_fit_fp16_is_refused() -> None:
    layer = relaxed(noise(2, 16), True)[2]
    with torch.no_grad():
        layer.coefficient[1] = 1e6
    with pytest.raises(OverflowError, match="fp16"):
        layer.working()
