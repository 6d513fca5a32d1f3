"""The codec of E8P points: exact bytes, its formula, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.latticecode import LatticeCode
from qdc.numerics.hadamard import SEEDS, random_signs, transform_size
from qdc.numerics.lattice import lattice_points


def made(codec: LatticeCode, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << 16, (codec.rows, codec.codes), generator=generator)
    working = {
        "codes": LatticeCode.stored_codes(codes),
        "scale": torch.tensor([0.0371]).half(),
        "seeds": torch.randint(SEEDS, (2,), generator=generator).int(),
    }
    if codec.rescaled:
        working["rescale"] = torch.rand(codec.columns, generator=generator).half() + 0.5
    return working


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 24), st.integers(1, 40), st.booleans(), st.integers(0, 1 << 30))
def test_round_trips_in_the_predicted_bytes(
    rows: int, columns: int, rescaled: bool, seed: int
) -> None:
    codec = LatticeCode(rows=rows, columns=columns, rescaled=rescaled)
    working = made(codec, seed)
    stored = codec.pack_exactly(working, "layer")
    expected = 2 * rows * -(-columns // 8) + 2 + 8 + (2 * columns if rescaled else 0)
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes == expected
    back = codec.unpack(stored)
    assert all(torch.equal(back[suffix], working[suffix]) for suffix in working)


@pytest.mark.parametrize("rescaled", [False, True])
def test_the_weight_is_that_of_the_formula(rescaled: bool) -> None:
    codec = LatticeCode(rows=12, columns=20, rescaled=rescaled)
    working = made(codec, 1)
    codes = working["codes"].numpy().view(np.uint16).astype(np.int64)
    points = lattice_points(torch.tensor(codes)).flatten(1)[:, :20].double()

    def mixing(width: int, seed: Tensor) -> Tensor:
        size = transform_size(width)
        matrix = np.ones((1, 1))
        while len(matrix) < size:
            matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
        whole = torch.tensor(np.kron(np.eye(width // size), matrix / size**0.5))
        return random_signs(width, int(seed)).double()[:, None] * whole

    inputs, outputs = mixing(20, working["seeds"][0]), mixing(12, working["seeds"][1])
    expected = float(working["scale"]) * outputs @ points @ inputs.T
    if rescaled:
        expected = expected / working["rescale"].double()
    torch.testing.assert_close(codec.dense(working).double(), expected, rtol=1e-5, atol=1e-6)


def test_two_bits_are_two_bits() -> None:
    codec = LatticeCode(rows=4096, columns=4096)
    assert codec.payload_bits == 2 * 4096**2
    assert 8 * codec.nbytes / 4096**2 == pytest.approx(2, abs=1e-5)
    assert codec.text() == "2 bits   rotated by 4096 and 4096"


def test_what_no_writer_writes_is_refused() -> None:
    codec = LatticeCode(rows=4, columns=16, rescaled=True)
    stored = codec.pack(made(codec, 0))
    wrong: dict[str, tuple[Tensor, str]] = {
        "seeds": (torch.tensor([1, -1]).int(), "a seed is below 0"),
        "rescale": (torch.zeros(16).half(), "not above 0"),
        "codes": (stored["codes"][:, :1], "the format says"),
        "scale": (torch.tensor([torch.inf]).half(), "NaN or infinity"),
    }
    for suffix, (tensor, message) in wrong.items():
        with pytest.raises(InvalidArtifact, match=message):
            codec.check({**stored, suffix: tensor}, "layer")
    with pytest.raises(ValidationError):
        LatticeCode(rows=1 << 21, columns=8)


def test_a_relaxation_moves_the_scale_alone() -> None:
    codec = LatticeCode(rows=6, columns=24)
    working = made(codec, 2)
    layer = codec.relax(working, torch.zeros(6, 24))
    torch.testing.assert_close(layer.dense(), codec.dense(working))
    assert all(torch.equal(layer.working()[name], working[name]) for name in working)
    ((_, scale, size),) = layer.trainable()
    assert size == float(working["scale"])
    with torch.no_grad():
        scale.mul_(2)
    twice = codec.dense(layer.working())
    torch.testing.assert_close(twice, 2 * codec.dense(working), rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        scale.mul_(1e8)
    with pytest.raises(OverflowError):
        layer.working()
