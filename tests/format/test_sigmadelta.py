"""The sigma-delta codec: exact bytes for random shapes, and what it refuses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from qdc.errors import InvalidArtifact
from qdc.format.relaxedsigmadelta import RelaxedSigmaDelta
from qdc.format.sigmadelta import SigmaDeltaCode
from qdc.numerics.sigma_delta import Coded, Levels
from tests.support.units import noise


def made(codec: SigmaDeltaCode, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(-1, 2, (codec.rows, codec.width), generator=generator)
    if codec.levels == "binary":
        codes = codes.sign() * 2 - 1
        codes = torch.where(codes > 0, 1, -1)
    shape = (codec.rows, len(codec.column_blocks))
    return {
        "codes": codes.to(torch.int8),
        "scale": torch.rand(shape, generator=generator).half(),
        "mean": torch.randn(shape, generator=generator).half(),
        "seed": torch.tensor([seed], dtype=torch.int32),
    }


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.integers(128, 400),
    st.sampled_from(["ternary", "binary"]),
    st.integers(0, 1 << 30),
)
def test_round_trips_in_the_predicted_bytes(
    rows: int, columns: int, length: int, levels: Levels, seed: int
) -> None:
    codec = SigmaDeltaCode(rows=rows, columns=columns, length=length, levels=levels)
    working = made(codec, seed)
    stored = codec.pack_exactly(working, "layer")
    widths = [min(128, columns - start) * length // 128 for start in range(0, columns, 128)]
    per_byte = 5 if levels == "ternary" else 8
    row = -(-sum(widths) // per_byte) + 4 * len(widths)
    assert sum(tensor.nbytes for tensor in stored.values()) == codec.nbytes == rows * row + 4
    assert [part.stop - part.start for part in codec.code_slices] == widths
    back = codec.unpack(stored)
    assert all(torch.equal(back[suffix], working[suffix]) for suffix in working)


@pytest.mark.parametrize(
    ("ratio", "levels", "code", "effective"),
    [
        (1.1, "ternary", 1.75, 2.0),
        (1.25, "ternary", 2.0, 2.25),
        (2, "ternary", 3.2, 3.45),
        (1.75, "binary", 1.75, 2.0),
    ],
)
def test_bits_are_those_of_the_ledger(
    ratio: float, levels: Levels, code: float, effective: float
) -> None:
    codec = SigmaDeltaCode(rows=4096, columns=4096, length=int(128 * ratio), levels=levels)
    weights = 4096 * 4096
    assert codec.payload_bits / weights == pytest.approx(code, abs=1e-3)
    assert 8 * codec.nbytes / weights == pytest.approx(effective, abs=2e-3)


def test_blocks_are_written_side_by_side() -> None:
    codec = SigmaDeltaCode(rows=3, columns=160, length=150)
    working = made(codec, 4)
    blocks = codec.blocks(4, torch.device("cpu"))
    parts = []
    for at, (block, part) in enumerate(zip(blocks, codec.code_slices, strict=True)):
        scale, mean = (working[name][:, at].float() for name in ("scale", "mean"))
        parts.append(block.dense(Coded(working["codes"][:, part], scale, mean)))
    assert torch.equal(codec.dense(working), torch.cat(parts, 1))
    assert torch.equal(blocks[0].rotation.signs[:32], blocks[1].rotation.signs)


def test_what_no_writer_writes_is_refused() -> None:
    codec = SigmaDeltaCode(rows=2, columns=40, length=160)
    stored = codec.pack(made(codec, 0))
    wrong: dict[str, tuple[Tensor, str]] = {
        "seed": (torch.tensor([-1]).int(), "below 0"),
        "codes": (stored["codes"][:, :-1], "the format says"),
        "mean": (stored["mean"] * torch.nan, "NaN or infinity"),
    }
    for suffix, (tensor, message) in wrong.items():
        with pytest.raises(InvalidArtifact, match=message):
            codec.check({**stored, suffix: tensor}, "layer")
    for length in (127, 1025):
        with pytest.raises(ValidationError):
            SigmaDeltaCode(rows=1, columns=128, length=length)


@pytest.mark.parametrize("levels", ["ternary", "binary"])
def test_a_relaxation_starts_at_the_codes_and_gradients_move_them(levels: Levels) -> None:
    codec = SigmaDeltaCode(rows=6, columns=160, length=160, levels=levels)
    working, weight = made(codec, 3), noise(6, 160)
    layer = codec.relax(working, weight)
    torch.testing.assert_close(layer.dense(), codec.dense(working), rtol=0, atol=1e-5)
    again = layer.working()
    assert again.keys() == working.keys()
    assert all(torch.equal(again[name], working[name]) for name in working)
    before = float((layer.dense().detach() - weight).square().sum())
    optimizer = torch.optim.Adam([p for _, p, _ in layer.trainable()], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        torch.autograd.backward((layer.dense() - weight).square().sum())
        optimizer.step()
    moved = layer.working()
    assert not torch.equal(moved["codes"], working["codes"])
    codec.pack_exactly(moved, "layer")
    assert float((codec.dense(moved) - weight).square().sum()) < 0.5 * before


def test_a_relaxation_has_the_derivatives_of_scale_and_mean() -> None:
    codec = SigmaDeltaCode(rows=2, columns=40, length=160)
    working, weight = made(codec, 5), noise(2, 40)
    layer = codec.relax(working, weight)
    assert isinstance(layer, RelaxedSigmaDelta)
    torch.autograd.backward((layer.dense() * weight).sum())
    for name, tensor in (("scale", layer.scale), ("mean", layer.mean)):
        moved = {**working, name: working[name].float() + 0.5}
        change = (codec.dense(moved) - codec.dense(working)) * weight
        assert tensor.grad is not None
        torch.testing.assert_close(tensor.grad[:, 0], change.sum(1) / 0.5, rtol=1e-3, atol=1e-5)
