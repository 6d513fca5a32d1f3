"""The layout of rings: every step's window stands where the kernel looks for it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.backends.triton.parts import can_join
from qdc.backends.triton.rings import WORD, reversed_states, ring_layout, ring_words
from qdc.format.trelliscode import TrellisCode
from qdc.numerics.fields import unpack_codes
from qdc.numerics.trellis import ring_states
from tests.support.kernels import trellis_part


def windows(codec: TrellisCode, words: Tensor) -> Tensor:
    """The states of all steps by the kernel's formula: ``i64[tiles down, tiles along, steps]``."""
    step = torch.arange(codec.tiling.size)
    begin = (step + 1) * codec.rate // 8 - codec.rate // 8
    around = torch.cat([words, words[..., :2]], dim=-1).long() & 0xFFFF
    word = begin // WORD
    pair = around[..., word] | around[..., word + 1] << WORD
    turned = pair >> (begin % WORD) & (1 << codec.window) - 1
    return reversed_states(codec.window)[turned]


@settings(max_examples=40)
@given(
    st.integers(1, 200),
    st.integers(1, 20),
    st.integers(8, 32),
    st.sampled_from([8, 10, 12, 14, 16]),
    st.sampled_from([16, 100, 128, 256]),
    st.sampled_from([1, 3]),
)
def test_every_window_is_that_of_the_format(
    rows: int, columns: int, rate: int, window: int, height: int, width: int
) -> None:
    part = trellis_part(rows, rows, columns, height=height, width=width, rate=rate, window=window)
    codec = part.codec
    assert isinstance(codec, TrellisCode)
    down, along = codec.tiling.tiles(rows, columns)
    bits = unpack_codes(part.stored["codes"], 1, codec.tiles * codec.ring)
    taken = codec.trellis(torch.device("cpu")).taken
    wanted = ring_states(bits.view(codec.tiles, -1), window, taken).view(along, down, -1)
    words = ring_words(codec, part.stored["codes"])
    assert torch.equal(windows(codec, words), wanted.transpose(0, 1).long())
    if codec.ring % WORD == 0:
        assert words.nbytes == len(part.stored["codes"])


@pytest.mark.parametrize("rate", range(8, 33))
def test_tiles_of_128_rows_take_no_byte_more(rate: int) -> None:
    part = trellis_part(1, 256, 6, rate=rate)
    assert ring_layout([part]).codes.nbytes == len(part.stored["codes"])


def test_joined_layers_keep_their_rotations() -> None:
    one, two, three = (trellis_part(s, 96 * s, 24, inputs=i) for s, i in ((1, 7), (2, 7), (3, 8)))
    assert ring_layout([one, two]).in_signs.shape == (1, 24)
    other = ring_layout([one, three])
    assert other.in_signs.shape == (2, 24)
    assert not torch.equal(*other.in_signs)
    assert other.tiles.tolist() == [[0, 0, 96], [1, 96, 96], [1, 192, 96], [1, 288, 96]]


def test_what_can_join() -> None:
    first = trellis_part(1, 256, 24).codec
    assert can_join([first, trellis_part(2, 128, 24).codec])
    for other in (
        trellis_part(3, 256, 24, rate=17),
        trellis_part(3, 256, 24, window=12),
        trellis_part(3, 256, 24, code="1mad"),
        trellis_part(3, 100, 24),
        trellis_part(3, 256, 32),
    ):
        assert not can_join([first, other.codec])
        assert not can_join([other.codec, first])
