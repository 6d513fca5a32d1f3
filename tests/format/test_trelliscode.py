"""The codec of trellis codes: exact bytes, its formula, and what it refuses."""

from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import SEEDS, random_signs, transform_size
from qdc.numerics.tiling import Tiling


def codec(rows: int, columns: int, rate: int = 16, height: int = 128, **fields: Any) -> TrellisCode:
    tiling = Tiling.fitted(rows, height, 1)
    shape = {"rows": rows, "columns": columns, "height": tiling.height, "width": tiling.width}
    return TrellisCode.model_validate(
        {**shape, "rate": rate, "window": 10, "code": "quadratic", **fields}
    )


def made(form: TrellisCode, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    (count,) = form.specification()["codes"].shape
    assert isinstance(count, int)
    return {
        "codes": torch.randint(256, (count,), generator=generator, dtype=torch.uint8),
        "scale": torch.tensor([0.0371]).half(),
        "seeds": torch.randint(SEEDS, (2,), generator=generator).int(),
    }


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 24), st.integers(8, 32), st.integers(1, 40))
def test_round_trips_in_the_predicted_bytes(
    rows: int, columns: int, rate: int, height: int
) -> None:
    form = codec(rows, columns, rate, height)
    working = made(form, rows)
    stored = form.pack_exactly(working, "layer")
    down, along = -(-rows // form.height), -(-columns // form.width)
    ring = form.height * form.width * rate // 8
    expected = -(-down * along * ring // 8) + 2 + 8
    assert sum(tensor.nbytes for tensor in stored.values()) == form.nbytes == expected
    back = form.unpack(stored)
    assert all(torch.equal(back[suffix], working[suffix]) for suffix in working)


@pytest.mark.parametrize(("rate", "height", "width"), [(16, 6, 3), (12, 12, 4), (25, 5, 2)])
def test_the_weight_is_that_of_the_formula(rate: int, height: int, width: int) -> None:
    form = codec(12, 20, rate, height=height, width=width)
    working = made(form, 1)
    bits = "".join(f"{byte:08b}"[::-1] for byte in working["codes"].tolist())
    assert form.width == width
    height = form.height
    ring = height * width * rate // 8
    down = -(-12 // height)
    points = np.zeros((12, 20))
    for row in range(12):
        for column in range(20):
            tile = column // width * down + row // height
            step = column % width * height + row % height
            text = bits[tile * ring : (tile + 1) * ring]
            end = (step + 1) * rate // 8
            state = int((text * 2)[ring + end - 10 : ring + end], 2)
            place = (338 * state * state + 955 * state) % 1024
            points[row, column] = round(256 * NormalDist().inv_cdf((place + 0.5) / 1024)) / 256

    def mixing(width: int, seed: Tensor) -> Tensor:
        size = transform_size(width)
        matrix = np.ones((1, 1))
        while len(matrix) < size:
            matrix = np.kron(np.array([[1, 1], [1, -1]]), matrix)
        whole = torch.tensor(np.kron(np.eye(width // size), matrix / size**0.5))
        return random_signs(width, int(seed)).double()[:, None] * whole

    inputs, outputs = mixing(20, working["seeds"][0]), mixing(12, working["seeds"][1])
    expected = float(working["scale"]) * outputs @ torch.tensor(points) @ inputs.T
    torch.testing.assert_close(form.dense(working).double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("rate", "bits"), [(8, 1), (12, 1.5), (16, 2), (17, 2.125), (32, 4)])
def test_no_bit_is_spent_on_anything_else(rate: int, bits: float) -> None:
    form = codec(4096, 4096, rate)
    assert form.payload_bits == bits * 4096**2
    assert form.nbytes == bits * 4096**2 / 8 + 10
    assert form.text() == f"{bits:g} bits   window 10   rotated by 4096 and 4096"


def test_a_long_layer_is_decoded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    form = codec(64, 12)
    working = made(form, 3)
    whole = form.dense(working)
    monkeypatch.setattr("qdc.format.trelliscode.DECODED", 128)
    assert torch.equal(form.dense(working), whole)


def test_what_no_writer_writes_is_refused() -> None:
    form = codec(4, 16)
    stored = form.pack(made(form, 0))
    wrong: dict[str, tuple[Tensor, str]] = {
        "seeds": (torch.tensor([1, -1]).int(), "a seed is below 0"),
        "codes": (stored["codes"][1:], "the format says"),
        "scale": (torch.tensor([torch.inf]).half(), "NaN or infinity"),
    }
    for suffix, (tensor, message) in wrong.items():
        with pytest.raises(InvalidArtifact, match=message):
            form.check({**stored, suffix: tensor}, "layer")
    outside: tuple[dict[str, Any], ...] = (
        {"rate": 7}, {"rate": 33}, {"window": 9}, {"code": "2mad"}, {"rows": 1 << 21}
    )  # fmt: skip
    for fields in outside:
        with pytest.raises(ValidationError):
            codec(**{"rows": 64, "columns": 8, **fields})
    with pytest.raises(ValidationError, match="8 bits of a tile hold no window of 10"):
        codec(4, 16, height=4, width=1)
    with pytest.raises(ValidationError, match="a tile holds at most 4096 weights"):
        codec(4096, 16, height=4096, width=2)


def test_a_relaxation_moves_the_scale_alone() -> None:
    form = codec(6, 24)
    working = made(form, 2)
    layer = form.relax(working, torch.zeros(6, 24))
    torch.testing.assert_close(layer.dense(), form.dense(working))
    assert all(torch.equal(layer.working()[name], working[name]) for name in working)
    ((_, scale, size),) = layer.trainable()
    assert size == float(working["scale"])
    with torch.no_grad():
        scale.mul_(2)
    twice = form.dense(layer.working())
    torch.testing.assert_close(twice, 2 * form.dense(working), rtol=1e-5, atol=1e-6)
