"""Tiles of a matrix: there and back, in the order that the format says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qdc.numerics.tiling import SHORTEST, Tiling


@settings(max_examples=25)
@given(*(st.integers(1, 12) for _ in range(4)))
def test_sequences_are_put_together_again(rows: int, columns: int, height: int, width: int) -> None:
    tiling, matrix = Tiling(height, width), torch.arange(1, rows * columns + 1).view(rows, columns)
    cut = tiling.sequences(matrix)
    down, along = tiling.tiles(rows, columns)
    assert cut.shape == (height * width, down * along)
    assert torch.equal(tiling.matrix(cut, rows, columns), matrix)
    for row, column in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns // 3)):
        step = column % width * height + row % height
        tile = column // width * down + row // height
        assert cut[step, tile] == matrix[row, column]
    assert int((cut != 0).sum()) == rows * columns


@pytest.mark.parametrize(
    ("rows", "height", "width", "expected"),
    [
        (256, 128, 1, (128, 1)),
        (160, 128, 1, (80, 1)),
        (257, 128, 1, (86, 1)),
        (4, 128, 1, (4, 16)),
        (1, 16, 16, (1, 64)),
        (64, 16, 16, (16, 16)),
    ],
)
def test_tiles_fit_the_rows(rows: int, height: int, width: int, expected: tuple[int, int]) -> None:
    tiling = Tiling.fitted(rows, height, width)
    assert tiling == expected
    assert tiling.size >= SHORTEST
