"""How the input columns of a linear layer are cut into blocks."""

from typing import Final

BLOCK: Final = 128


def block_slices(columns: int, width: int = BLOCK) -> tuple[slice, ...]:
    """Cut ``columns`` input columns into blocks, left to right.

    Args:
        columns: Input features of the layer.
        width: Columns of a block; the last block may be narrower.

    Returns:
        Adjoining slices that cover ``0 .. columns``.

    Raises:
        ValueError: If either number is below 1.
    """
    if columns < 1 or width < 1:
        raise ValueError(f"cannot cut {columns} columns into blocks of {width}")
    return tuple(slice(start, min(start + width, columns)) for start in range(0, columns, width))


def block_widths(columns: int, width: int = BLOCK) -> tuple[int, ...]:
    """Count the columns of each block of ``block_slices``.

    Args:
        columns: Input features of the layer.
        width: Columns of a block; the last block may be narrower.

    Returns:
        One positive width a block; they add up to ``columns``.

    Raises:
        ValueError: If either number is below 1.
    """
    return tuple(part.stop - part.start for part in block_slices(columns, width))
