"""Write weights out to a shared buffer, some rows at a time, and multiply by the library."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .arena import CHUNK_BYTES, dense_buffer
from .binary import binary_expand
from .launch import options
from .layout import TILE_ROWS, row_tiles
from .rings import window_group
from .trellis import trellis_expand
from .uniform import uniform_expand
from .variants import EXPAND, RING_COLUMNS

Expander = Callable[[Tensor, int, int, int], None]
EXPAND_ROWS = 32
"""Outputs of a program that expands weights."""
RING_ROWS = 64
"""Outputs of a program that expands rings."""


def expand_binary(
    pair_planes: Tensor,
    single_planes: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    blocks: Tensor,
    tiles: Tensor,
    columns: int,
) -> Expander:
    """What writes dense weights of tiles ``[first, last)``, whose outputs begin at ``start``."""

    def expand(weight: Tensor, first: int, last: int, start: int) -> None:
        binary_expand[((last - first) * TILE_ROWS // EXPAND_ROWS, blocks.shape[0])](
            pair_planes,
            single_planes,
            row_scale,
            col_scale,
            blocks,
            tiles,
            weight,
            first,
            start,
            columns,
            pair_planes.shape[1],
            2 * pair_planes.shape[0] + single_planes.shape[0],
            pair_planes.shape[0],
            ROWS=EXPAND_ROWS,
            WIDTH=8 * pair_planes.shape[2],
            **options(EXPAND),
        )

    return expand


def expand_uniform(
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    tiles: Tensor,
    columns: int,
    bits: int,
    group: int,
) -> Expander:
    """The same for codes."""
    width = 8 * codes.shape[2] // bits

    def expand(weight: Tensor, first: int, last: int, start: int) -> None:
        uniform_expand[((last - first) * TILE_ROWS // EXPAND_ROWS, codes.shape[0])](
            codes,
            scale,
            offset,
            tiles,
            weight,
            first,
            start,
            columns,
            codes.shape[1],
            group // width,
            ROWS=EXPAND_ROWS,
            WIDTH=width,
            BITS=bits,
            **options(EXPAND),
        )

    return expand


def expand_trellis(
    codes: Tensor,
    table: Tensor,
    scale: Tensor,
    tiles: Tensor,
    columns: int,
    height: int,
    span: int,
    rate: int,
    window: int,
) -> Expander:
    """The same for rings, whose weights stay rotated; ``table`` is fp32."""
    parts = -(-height // RING_ROWS)

    def expand(weight: Tensor, first: int, last: int, start: int) -> None:
        trellis_expand[((last - first) * parts, -(-columns // RING_COLUMNS))](
            codes,
            table,
            scale,
            tiles,
            weight,
            first,
            start,
            columns,
            codes.shape[1] * codes.shape[2],
            codes.shape[2],
            height,
            parts,
            ROWS=RING_ROWS,
            WIDTH=RING_COLUMNS,
            SPAN=span,
            GROUP=window_group(span, rate, window),
            RATE=rate,
            WINDOW=window,
            **options(EXPAND),
        )

    return expand


@cache
def _starts(rows: tuple[int, ...], height: int) -> list[int]:
    """First output of every tile, and the number of outputs; thousands, for a vocabulary."""
    return [*row_tiles(rows, height)[:, 1].tolist(), sum(rows)]


def run_expanded(
    x: Tensor,
    bias: Tensor | None,
    rows: list[int],
    expand: Expander,
    height: int = TILE_ROWS,
) -> Tensor:
    """Expand some rows at a time to a shared buffer, and multiply by the library.

    Args:
        x: ``[M, columns]``.
        bias: ``[outputs]``.
        rows: outputs of each segment.
        expand: writes tiles ``[first, last)`` to a buffer.
        height: outputs of a tile.
    """
    columns, outputs = x.shape[1], sum(rows)
    starts = _starts(tuple(rows), height)
    y = torch.empty(x.shape[0], outputs, dtype=x.dtype, device=x.device)
    step = max(1, CHUNK_BYTES // (height * columns * x.element_size()))
    for first in range(0, len(starts) - 1, step):
        last = min(first + step, len(starts) - 1)
        start, stop = starts[first], starts[last]
        weight = dense_buffer((stop - start) * columns, x.dtype, x.device)
        weight = weight.view(stop - start, columns)
        expand(weight, first, last, start)
        if bias is None:
            torch.mm(x, weight.T, out=y[:, start:stop])
        else:
            torch.addmm(bias[start:stop].to(x.dtype), x, weight.T, out=y[:, start:stop])
    return y
