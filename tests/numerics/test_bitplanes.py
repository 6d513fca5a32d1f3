import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.bitplanes import pack_signs, unpack_signs


def test_bit_j_of_byte_b_is_column_8b_plus_j() -> None:
    signs = -torch.ones(12, dtype=torch.int8)
    signs[[0, 3, 9]] = 1
    assert pack_signs(signs).tolist() == [0b1001, 0b10]


def test_padding_bits_are_zero() -> None:
    assert pack_signs(torch.ones(2, 3, 9, dtype=torch.int8)).tolist() == [[[255, 1]] * 3] * 2


@st.composite
def sign_tensors(draw: st.DrawFn) -> Tensor:
    shape = [*draw(st.lists(st.integers(1, 4), max_size=2)), draw(st.integers(1, 40))]
    seed = draw(st.integers(0, 2**31))
    bits = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed))
    return (bits * 2 - 1).to(torch.int8)


@given(sign_tensors())
def test_round_trip(signs: Tensor) -> None:
    planes = pack_signs(signs)
    width = signs.shape[-1]
    assert planes.dtype == torch.uint8
    assert planes.shape == (*signs.shape[:-1], (width + 7) // 8)
    found = unpack_signs(planes, width)
    assert found.dtype == torch.int8
    assert torch.equal(found, signs)
    # A row is one little-endian number whose binary digits, lowest first, are the columns.
    number = sum(1 << j for j, sign in enumerate(signs.flatten().tolist()[:width]) if sign == 1)
    row = planes.flatten().tolist()[: planes.shape[-1]]
    assert int.from_bytes(bytes(row), "little") == number


@pytest.mark.parametrize("bad", [0, 2, -3])
def test_refuses_what_is_no_sign(bad: int) -> None:
    with pytest.raises(ValueError, match="signs"):
        pack_signs(torch.tensor([1, -1, bad], dtype=torch.int8))


def test_refuses_a_width_of_other_bytes() -> None:
    planes = pack_signs(torch.ones(9, dtype=torch.int8))
    for width in (8, 17):
        with pytest.raises(ValueError, match="bytes"):
            unpack_signs(planes, width)
