import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qdc.numerics.uniform import dense_uniform, fit_uniform, pack_codes, unpack_codes


def test_by_hand() -> None:
    u = fit_uniform(torch.tensor([[-1.0, 0.1, 0.9, 2.0], [0.0, 0.0, 0.0, 3.0]]), 2)
    assert u.codes.tolist() == [[0, 1, 2, 3], [0, 0, 0, 3]]
    assert (u.scale.tolist(), u.minimum.tolist()) == ([1.0, 1.0], [-1.0, 0.0])
    assert dense_uniform(u).tolist() == [[-1, 0, 1, 2], [0, 0, 0, 3]]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_takes_the_nearest_level_of_the_rounded_grid(bits: int, scale: float) -> None:
    block = torch.randn(6, 33, generator=torch.Generator().manual_seed(bits)) * scale
    u = fit_uniform(block, bits)
    for stored, exact in (
        (u.minimum, block.numpy().min(axis=1)),
        (u.scale, (block.numpy().max(axis=1) - block.numpy().min(axis=1)) / (2**bits - 1)),
    ):
        assert stored.tolist() == exact.astype(np.float16).astype(np.float32).tolist()
    found = dense_uniform(u)
    for i in range(6):
        levels = [u.scale[i].item() * c + u.minimum[i].item() for c in range(2**bits)]
        for j in range(33):
            best = min(abs(block[i, j].item() - level) for level in levels)
            assert abs(block[i, j].item() - found[i, j].item()) <= best + 1e-5 * scale


@pytest.mark.parametrize("value", [0.0, 0.1, -3.3, 1e-6, 60010.0])
def test_a_constant_row_is_its_fp16_rounding(value: float) -> None:
    u = fit_uniform(torch.full((2, 5), value), 2)
    assert not u.codes.any()
    assert dense_uniform(u).tolist() == [[torch.tensor(value).half().item()] * 5] * 2


def test_a_range_below_fp16_falls_to_the_minimum() -> None:
    u = fit_uniform(torch.tensor([[1e-9, 2e-9]]), 2)
    assert dense_uniform(u).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("row", [[-7e4, 0.0], [0.0, 7e4], [7e4, 7e4]])
def test_overflow_is_refused(row: list[float]) -> None:
    with pytest.raises(OverflowError, match="fp16"):
        fit_uniform(torch.tensor([row]), 1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN"):
        fit_uniform(torch.tensor([[0.0, bad]]), 2)


@pytest.mark.parametrize("bits", [0, 9, -1])
def test_other_widths_are_refused(bits: int) -> None:
    with pytest.raises(ValueError, match="bits"):
        fit_uniform(torch.zeros(1, 2), bits)


@given(
    bits=st.sampled_from([1, 2, 4, 8]),
    rows=st.integers(1, 3),
    width=st.integers(1, 37),
    seed=st.integers(0, 2**31),
)
def test_codes_round_trip(bits: int, rows: int, width: int, seed: int) -> None:
    codes = torch.randint(
        0, 2**bits, (rows, width), generator=torch.Generator().manual_seed(seed)
    ).to(torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (rows, (width * bits + 7) // 8)
    assert torch.equal(unpack_codes(packed, bits, width), codes)
    # A row is one little-endian number whose digits, lowest first, are the codes.
    number = sum(code << (bits * j) for j, code in enumerate(codes[0].tolist()))
    assert int.from_bytes(bytes(packed[0].tolist()), "little") == number


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        pack_codes(torch.tensor([4], dtype=torch.uint8), 2)
    with pytest.raises(ValueError, match="bits"):
        pack_codes(torch.tensor([4], dtype=torch.uint8), 3)
    with pytest.raises(ValueError, match="uint8"):
        pack_codes(torch.tensor([1]), 2)
    with pytest.raises(ValueError, match="bytes"):
        unpack_codes(torch.zeros(2, dtype=torch.uint8), 2, 4)
    with pytest.raises(ValueError, match="uint8"):
        unpack_codes(torch.zeros(1), 2, 4)
