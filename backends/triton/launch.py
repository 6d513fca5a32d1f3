"""Start kernels on tensors: grids, alignments, workspaces."""

from functools import cache

import torch
from torch import Tensor

from .binary import binary_linear
from .rings import window_group
from .support import interpreting
from .trellis import trellis_linear
from .uniform import uniform_embedding, uniform_linear
from .variants import EXPAND, REGISTERS, RING_COLUMNS, Choice, Variant


@cache
def options(variant: Variant) -> dict[str, int]:
    """What a kernel is launched with; nothing in the interpreter."""
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
        **options(variant),
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
        **options(variant),
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
        **options(variant),
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
        **options(EXPAND),
    )
    return y
