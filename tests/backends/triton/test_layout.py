"""The layout of kernels is another order of the same bits: nothing lost, nothing added."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qdc.backends.triton.layout import (
    TILE_ROWS,
    BinaryLayout,
    binary_layout,
    restore_bits,
    swap_bits,
)
from qdc.format.multibinary import MultiBinary
from tests.support.kernels import binary_layer


@st.composite
def layers(draw: st.DrawFn) -> tuple[int, int, int, tuple[int, ...], int]:
    block = draw(st.sampled_from([32, 64, 128, 256]))
    columns = draw(st.integers(1, 3 * block))
    blocks = -(-columns // block)
    orders = tuple(draw(st.lists(st.integers(1, 4), min_size=blocks, max_size=blocks)))
    return draw(st.integers(1, 140)), columns, block, orders, draw(st.sampled_from([8, 16]))


def portable_planes(layout: BinaryLayout, codec: MultiBinary, segment: int) -> dict[str, Tensor]:
    """Planes and scales of one segment as the artifact stores them: the inverse of the layout.

    Returns ``planes`` u8[rows, P, block / 8], ``row_scale`` f16[rows, P] and ``col_scale``
    f16[1, P, block].
    """
    first = sum(-(-r // TILE_ROWS) * TILE_ROWS for r in layout.rows[:segment])
    rows = slice(first, first + layout.rows[segment])
    parts = codec.block // layout.width
    planes = torch.zeros(codec.planes, codec.rows, parts, layout.width // 8, dtype=torch.uint8)
    columns = torch.zeros(codec.planes, parts, layout.width, dtype=torch.float16)
    for number, order, *rest in layout.blocks.tolist():
        part = number % parts
        for sub, plane in zip(rest[:order], rest[4 : 4 + order], strict=True):
            planes[plane, :, part] = restore_bits(layout.planes[sub, rows])
            columns[plane, part] = layout.col_scale[segment, sub]
    return {
        "planes": planes.transpose(0, 1).flatten(2),
        "row_scale": layout.row_scale[:, rows].T,
        "col_scale": columns.flatten(1)[None],
    }


@settings(max_examples=25)
@given(layers(), st.integers(0, 2**16), st.integers(1, 3))
def test_round_trip(
    shape: tuple[int, int, int, tuple[int, ...], int], seed: int, segments: int
) -> None:
    rows, columns, block, orders, bits = shape
    parts = [
        binary_layer(seed + s, rows + s, columns, block, orders, bits).part for s in range(segments)
    ]
    layout = binary_layout(parts)
    for segment, part in enumerate(parts):
        codec = part.codec
        assert isinstance(codec, MultiBinary)
        working = codec.unpack(part.stored)
        found = portable_planes(layout, codec, segment)
        # Sub-blocks behind the last column are not laid out; their bits are padding.
        known = torch.zeros(codec.planes, block, dtype=torch.bool)
        first = 0
        for number, order in enumerate(orders):
            width = min(block, columns - number * block)
            known[first : first + order, :width] = True
            first += order
        signs = codec.unpack({**part.stored, "planes": found["planes"]})["signs"]
        assert torch.equal(signs[:, known], working["signs"][:, known])
        assert torch.equal(found["row_scale"], working["row_scale"])
        assert torch.equal(found["col_scale"][0][known], working["col_scale"][0][known])


@settings(max_examples=25)
@given(layers(), st.integers(0, 2**16))
def test_no_plane_is_padded(shape: tuple[int, int, int, tuple[int, ...], int], seed: int) -> None:
    rows, columns, block, orders, bits = shape
    layout = binary_layout([binary_layer(seed, rows, columns, block, orders, bits).part])
    width = layout.width
    wanted = sum(
        order * -(-min(block, columns - number * block) // width)
        for number, order in enumerate(orders)
    )
    assert layout.planes.shape[0] == wanted
    assert 2 * len(layout.pairs) + len(layout.singles) == wanted
    assert int(layout.tiles[:, 2].sum()) == rows


def test_neighbouring_columns_lie_in_neighbouring_bytes() -> None:
    signs = -torch.ones(128, dtype=torch.int8)
    signs[[0, 1, 16, 127]] = 1
    from qdc.numerics.bitplanes import pack_signs

    swapped = swap_bits(pack_signs(signs))
    assert swapped.tolist() == [0b11, 0b1, *[0] * 13, 0b1000_0000]
    assert torch.equal(restore_bits(swapped), pack_signs(signs))
