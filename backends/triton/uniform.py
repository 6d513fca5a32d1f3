"""The kernels of uniform linears and embeddings: vocabulary in 8 bits, and the baselines.

Codes are small integers, exact in bf16 and fp16. They are multiplied as ``code - middle``, so that
large equal parts do not have to cancel; scale and offset of a group come in behind the product, the
offset times the sum of the group's activations.
"""

import triton
import triton.language as tl

from .binary import load_columns
from .signs import multiply, spread


@triton.jit
def centred_codes(packed, BITS: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr):
    """``u8[bytes, rows]`` to ``code - 2^(BITS - 1)``, ``[W, rows]`` in ``DTYPE``."""
    fields: tl.constexpr = 8 // BITS
    wide = spread(packed, PTX)
    shift = (tl.arange(0, fields) * BITS).to(tl.int16)
    code = (wide[None, :, :] >> shift[:, None, None]) & (2**BITS - 1)
    centred = (code - 2 ** (BITS - 1)).to(tl.float32).to(DTYPE)
    return tl.reshape(centred, (fields * packed.shape[0], packed.shape[1]))


@triton.jit(do_not_specialize=["tokens", "column_tiles", "tiles_of_group"])
def uniform_linear(
    x_pointer,
    codes_pointer,
    scale_pointer,
    offset_pointer,
    tiles_pointer,
    bias_pointer,
    y_pointer,
    tokens,
    columns,
    x_stride,
    padded_rows,
    outputs,
    column_tiles,
    tiles_of_group,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RAGGED: tl.constexpr,
    PTX: tl.constexpr,
):
    """One tile ``[TOKENS, ROWS]`` of outputs."""
    first_row = tl.program_id(0) * ROWS
    tile = tiles_pointer + first_row // 128 * 3
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    within = first_row % 128 + tl.arange(0, ROWS)
    row = first_row + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, WIDTH)
    size: tl.constexpr = WIDTH * BITS // 8
    x_tile = x_pointer + token.to(tl.int64)[:, None] * x_stride + column[None, :]
    present = token[:, None] < tokens
    code_tile = codes_pointer + row.to(tl.int64)[None, :] * size + tl.arange(0, size)[:, None]
    tile_size = padded_rows.to(tl.int64) * size
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for number in range(column_tiles):
        x = load_columns(x_tile, number * WIDTH, present, column, columns, RAGGED)
        packed = tl.load(code_tile + number * tile_size)
        group = number // tiles_of_group
        scale = tl.load(scale_pointer + group * padded_rows + row).to(tl.float32)
        offset = tl.load(offset_pointer + group * padded_rows + row)
        product = multiply(x, centred_codes(packed, BITS, x.dtype, PTX), PTX)
        seen = tl.sum(x.to(tl.float32), axis=1)
        total += product * scale[None, :] + seen[:, None] * offset[None, :]
    output = start + within
    wanted = present & (within[None, :] < count)
    if HAS_BIAS:
        bias = tl.load(bias_pointer + output, mask=within < count, other=0.0)
        total += bias.to(tl.float32)[None, :]
    place = token.to(tl.int64)[:, None] * outputs + output[None, :]
    tl.store(y_pointer + place, total.to(y_pointer.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["first_tile", "first_output", "tiles_of_group"])
def uniform_expand(
    codes_pointer,
    scale_pointer,
    offset_pointer,
    tiles_pointer,
    w_pointer,
    first_tile,
    first_output,
    columns,
    padded_rows,
    tiles_of_group,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
):
    """Dense weights of a tile of rows in one tile of columns."""
    tile_number = first_tile + tl.program_id(0) // (128 // ROWS)
    first_row = tile_number * 128 + tl.program_id(0) % (128 // ROWS) * ROWS
    tile = tiles_pointer + tile_number * 3
    start, count = tl.load(tile + 1), tl.load(tile + 2)
    within = first_row % 128 + tl.arange(0, ROWS)
    row = first_row + tl.arange(0, ROWS)
    number = tl.program_id(1)
    column = tl.arange(0, WIDTH)
    size: tl.constexpr = WIDTH * BITS // 8
    packed = tl.load(
        codes_pointer
        + (number.to(tl.int64) * padded_rows + row[:, None]) * size
        + (column % size)[None, :]
    )
    code = (packed.to(tl.int32) >> (column // size * BITS)[None, :]) & (2**BITS - 1)
    group = number // tiles_of_group
    scale = tl.load(scale_pointer + group * padded_rows + row).to(tl.float32)
    offset = tl.load(offset_pointer + group * padded_rows + row)
    weight = scale[:, None] * (code - 2 ** (BITS - 1)).to(tl.float32) + offset[:, None]
    first = number * WIDTH
    place = (
        (start - first_output + within).to(tl.int64)[:, None] * columns + first + column[None, :]
    )
    wanted = (within[:, None] < count) & (first + column[None, :] < columns)
    tl.store(w_pointer + place, weight.to(w_pointer.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["tiles_of_group"])
def uniform_embedding(
    ids_pointer,
    codes_pointer,
    scale_pointer,
    offset_pointer,
    y_pointer,
    columns,
    padded_rows,
    tiles_of_group,
    WIDTH: tl.constexpr,
    BITS: tl.constexpr,
):
    """One token's weights in one tile of columns; ids are checked on the host or by their range."""
    place = tl.program_id(0).to(tl.int64)
    number = tl.program_id(1)
    row = tl.load(ids_pointer + place)
    column = tl.arange(0, WIDTH)
    size: tl.constexpr = WIDTH * BITS // 8
    packed = tl.load(
        codes_pointer + (number.to(tl.int64) * padded_rows + row) * size + column % size
    )
    code = (packed.to(tl.int32) >> (column // size * BITS)) & (2**BITS - 1)
    group = number // tiles_of_group
    scale = tl.load(scale_pointer + group * padded_rows + row).to(tl.float32)
    offset = tl.load(offset_pointer + group * padded_rows + row)
    weight = scale * (code - 2 ** (BITS - 1)).to(tl.float32) + offset
    at = number * WIDTH + column
    tl.store(
        y_pointer + place * columns + at,
        weight.to(y_pointer.dtype.element_ty),
        mask=at < columns,
    )
