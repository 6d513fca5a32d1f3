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


def even_width(columns: int, width: int) -> int:
    """Choose blocks of one width near ``width``, so that none is left that is much narrower.

    A narrower last block is stored padded, and pays for scales of its own.

    Args:
        columns: Input features of the layer.
        width: Columns that a block should have; at least 8.

    Returns:
        Of the multiples of 32 (of 8 if ``width`` is none) between half of ``width`` and its
        double, the one that pads least; of those the nearest to ``width``, the wider of two.

    Raises:
        ValueError: If a number is too small.
    """
    if columns < 1 or width < 8:
        raise ValueError(f"cannot cut {columns} columns into blocks of about {width}")
    step = 8 if width % 32 else 32
    lowest = -(-width // (2 * step)) * step
    return min(
        range(lowest, 2 * width + 1, step),
        key=lambda found: (-columns % found, abs(found - width), -found),
    )
