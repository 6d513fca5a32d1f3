"""Start kernels on tensors: grids, alignments, workspaces."""

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from .arena import CHUNK_BYTES, dense_buffer
from .binary import binary_expand, binary_linear
from .layout import TILE_ROWS, row_tiles
from .rings import window_group
from .support import interpreting
from .trellis import trellis_expand, trellis_linear
from .uniform import uniform_embedding, uniform_expand, uniform_linear
from .variants import EXPAND, REGISTERS, RING_COLUMNS, Choice, Variant

Expander = Callable[[Tensor, int, int, int], None]
EXPAND_ROWS = 32
"""Outputs of a program that expands weights."""
RING_ROWS = 64
"""Outputs of a program that expands rings."""


@cache
def _options(variant: Variant) -> dict[str, int]:
    if interpreting():
        return {}
    return {
        "num_warps": variant.warps,
        "num_stages": variant.stages,
        "enable_fp_fusion": True,
        "maxnreg": REGISTERS,
    }


def run_binary(
    x: Tensor,
    pair_planes: Tensor,
    single_planes: Tensor,
    row_scale: Tensor,
    col_scale: Tensor,
    pairs: Tensor,
    singles: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    arrivals: Tensor,
    columns: int,
    outputs: int,
    choice: Choice,
) -> Tensor:
    """``x [M, columns]`` times packed weights: ``[M, outputs]`` in the dtype of ``x``."""
    tokens, padded = x.shape[0], pair_planes.shape[1]
    width = 8 * pair_planes.shape[2]
    variant, split = choice.variant, choice.split
    grid = (padded // variant.rows, -(-tokens // variant.tokens), split)
    y = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    partial = torch.empty(
        split * tokens * outputs if split > 1 else 0, dtype=torch.float32, device=x.device
    )
    binary_linear[grid](
        x,
        pair_planes,
        single_planes,
        row_scale,
        col_scale,
        pairs,
        singles,
        tiles,
        y if bias is None else bias,
        y,
        y if split == 1 else partial,
        arrivals,
        tokens,
        columns,
        x.stride(0),
        padded,
        outputs,
        2 * pairs.shape[0] + singles.shape[0],
        pairs.shape[0],
        singles.shape[0],
        ROWS=variant.rows,
        TOKENS=variant.tokens,
        WIDTH=width,
        ADD_FIRST=variant.family == "tile",
        SPLIT=split,
        HAS_BIAS=bias is not None,
        RAGGED=columns % width != 0,
        PTX=not interpreting(),
        **_options(variant),
    )
    return y


def run_uniform(
    x: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    tiles: Tensor,
    bias: Tensor | None,
    columns: int,
    outputs: int,
    bits: int,
    group: int,
    variant: Variant,
) -> Tensor:
    """``x [M, columns]`` times packed codes: ``[M, outputs]`` in the dtype of ``x``."""
    tokens, padded = x.shape[0], codes.shape[1]
    width = 8 * codes.shape[2] // bits
    y = torch.empty(tokens, outputs, dtype=x.dtype, device=x.device)
    uniform_linear[(padded // variant.rows, -(-tokens // variant.tokens))](
        x,
        codes,
        scale,
        offset,
        tiles,
        y if bias is None else bias,
        y,
        tokens,
        columns,
        x.stride(0),
        padded,
        outputs,
        codes.shape[0],
        group // width,
        ROWS=variant.rows,
        TOKENS=variant.tokens,
        WIDTH=width,
        BITS=bits,
        HAS_BIAS=bias is not None,
        RAGGED=columns % width != 0,
        PTX=not interpreting(),
        **_options(variant),
    )
    return y


def run_trellis(
    x: Tensor,
    codes: Tensor,
    table: Tensor,
    scale: Tensor,
    tiles: Tensor,
    outputs: int,
    height: int,
    span: int,
    rate: int,
    window: int,
    choice: Choice,
) -> Tensor:
    """Rotated ``x [D, M, columns]`` times rings, in parts: ``f32[split, M, outputs]``.

    Each segment has its own ``x`` unless ``D`` is 1.
    """
    _, tokens, columns = x.shape
    variant, split = choice.variant, choice.split
    parts = -(-height // variant.rows)
    z = torch.empty(split, tokens, outputs, dtype=torch.float32, device=x.device)
    trellis_linear[(tiles.shape[0] * parts, -(-tokens // variant.tokens), split)](
        x,
        codes,
        table,
        scale,
        tiles,
        z,
        tokens,
        columns,
        tokens * columns if x.shape[0] > 1 else 0,
        outputs,
        codes.shape[1] * codes.shape[2],
        codes.shape[2],
        height,
        parts,
        -(-columns // RING_COLUMNS),
        ROWS=variant.rows,
        TOKENS=variant.tokens,
        WIDTH=RING_COLUMNS,
        SPAN=span,
        GROUP=window_group(span, rate, window),
        RATE=rate,
        WINDOW=window,
        SPLIT=split,
        RAGGED=columns % RING_COLUMNS != 0,
        PTX=not interpreting(),
        **_options(variant),
    )
    return z


def run_embedding(
    ids: Tensor,
    codes: Tensor,
    scale: Tensor,
    offset: Tensor,
    columns: int,
    bits: int,
    group: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows ``i64[M]`` of packed codes: ``[M, columns]``."""
    width = 8 * codes.shape[2] // bits
    y = torch.empty(ids.shape[0], columns, dtype=dtype, device=ids.device)
    uniform_embedding[(ids.shape[0], codes.shape[0])](
        ids,
        codes,
        scale,
        offset,
        y,
        columns,
        codes.shape[1],
        group // width,
        WIDTH=width,
        BITS=bits,
        **_options(EXPAND),
    )
    return y


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
            **_options(EXPAND),
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
            **_options(EXPAND),
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
            **_options(EXPAND),
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
