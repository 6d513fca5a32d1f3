import pytest

from qdc.numerics.blocks import BLOCK, block_slices, block_widths, even_width


def test_last_block_is_narrower() -> None:
    assert block_slices(10, 4) == (slice(0, 4), slice(4, 8), slice(8, 10))
    assert block_widths(10, 4) == (4, 4, 2)


def test_full_width_is_128() -> None:
    assert BLOCK == 128
    assert block_widths(4096) == (128,) * 32
    assert block_widths(100) == (100,)


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
@pytest.mark.parametrize("width", [1, 3, 8, 100])
def test_every_column_is_in_one_block(columns: int, width: int) -> None:
    covered = [column for part in block_slices(columns, width) for column in range(columns)[part]]
    assert covered == list(range(columns))
    assert max(block_widths(columns, width)) == min(width, columns)


@pytest.mark.parametrize(("columns", "width"), [(0, 4), (-1, 4), (4, 0), (4, -2)])
def test_refuses_nothing_to_cut(columns: int, width: int) -> None:
    with pytest.raises(ValueError, match="cannot cut"):
        block_slices(columns, width)


@pytest.mark.parametrize(
    ("columns", "width", "found"),
    [(4096, 256, 256), (576, 256, 288), (1536, 256, 256), (320, 256, 320), (384, 256, 192),
     (896, 256, 224), (520, 128, 96), (96, 24, 24)],
)  # fmt: skip
def test_even_blocks_are_near_the_width_that_is_asked_for(
    columns: int, width: int, found: int
) -> None:
    assert even_width(columns, width) == found


@pytest.mark.parametrize("width", [8, 24, 32, 128, 256])
def test_even_blocks_pad_no_more_than_fixed_ones(width: int) -> None:
    for columns in range(1, 4 * width + 3):
        even = even_width(columns, width)
        assert width / 2 <= even <= 2 * width
        assert -columns % even <= min(-columns % width, -columns % (2 * width))
