import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from qdc.numerics.trits import pack_trits, unpack_trits


def test_column_5b_plus_j_is_digit_j_of_byte_b() -> None:
    codes = torch.tensor([-1, 0, 1, -1, 1, 1, 0], dtype=torch.int8)
    assert pack_trits(codes).tolist() == [0 + 1 * 3 + 2 * 9 + 0 * 27 + 2 * 81, 2 + 1 * 3]


@st.composite
def code_tensors(draw: st.DrawFn) -> Tensor:
    shape = [*draw(st.lists(st.integers(1, 4), max_size=2)), draw(st.integers(1, 40))]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(-1, 2, shape, generator=generator).to(torch.int8)


@given(code_tensors())
def test_round_trip(codes: Tensor) -> None:
    packed = pack_trits(codes)
    width = codes.shape[-1]
    assert packed.dtype == torch.uint8
    assert packed.shape == (*codes.shape[:-1], -(-width // 5))
    assert int(packed.max()) < 3**5
    found = unpack_trits(packed, width)
    assert found.dtype == torch.int8
    assert torch.equal(found, codes)


def test_any_byte_gives_codes() -> None:
    codes = unpack_trits(torch.arange(256, dtype=torch.uint8)[:, None], 5)
    assert set(codes.flatten().tolist()) == {-1, 0, 1}
    assert len({tuple(row) for row in codes[:243].tolist()}) == 243


@pytest.mark.parametrize("bad", [2, -2, 127, -128])
def test_refuses_what_is_no_ternary_code(bad: int) -> None:
    with pytest.raises(ValueError, match="ternary codes are"):
        pack_trits(torch.tensor([1, 0, bad], dtype=torch.int8))
    with pytest.raises(ValueError, match="ternary codes are"):
        pack_trits(torch.zeros(3))


def test_refuses_a_width_of_other_bytes() -> None:
    packed = pack_trits(torch.ones(6, dtype=torch.int8))
    for width in (5, 11):
        with pytest.raises(ValueError, match="2 bytes do not hold"):
            unpack_trits(packed, width)
    with pytest.raises(ValueError, match="uint8"):
        unpack_trits(packed.int(), 6)
