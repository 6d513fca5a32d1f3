"""The kernels of linears on trellis codes: windows of a ring of bits, each of which names a level.

A program takes rows of one tile of the codec, and columns some at a time. Two words hold the
windows of ``GROUP`` neighbouring rows of a column, eight if steps take two bits: they are loaded
once, and a window is one shift and one mask. What a window names is looked up in a table of
``2^WINDOW`` levels, which lies in shared memory as long as it is of moderate size.

The rotations stand outside: what comes in is rotated, what goes out is not rotated back yet.
"""

import triton
import triton.language as tl

from .binary import load_columns
from .signs import multiply

# Bits of a window up to which the table is kept; a larger one is read through the cache.
KEPT = tl.constexpr(12)


@triton.jit
def ring_levels(
    ring_tile,
    table_pointer,
    table,
    column,
    first_row,
    height,
    words,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    RATE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Levels ``[columns, ROWS]`` of a tile from ``first_row`` on.

    ``ring_tile`` points to the rings of a tile's rows, i16[rings, words]; steps run down ``SPAN``
    columns of ``height`` rows, and two words hold the windows of ``GROUP`` steps. ``table`` is what
    ``kept_table`` gives.
    """
    group, one = first_row // GROUP + tl.arange(0, ROWS // GROUP), tl.arange(0, GROUP)
    ring = column[:, None]
    step = group[None, :] * GROUP
    if SPAN > 1:
        ring, step = ring // SPAN, (column % SPAN)[:, None] * height + step
    # Layouts turn rings so that step t has its window from bit (t + 1) RATE // 8 - RATE // 8 on.
    if SPAN == 1 and RATE * GROUP % 128 == 0:
        # Whole words a group: said like this, it is seen that neighbouring words are read.
        word = group[None, :] * (RATE * GROUP // 128)
        shift = (((one + 1) * RATE >> 3) - (RATE >> 3))[None, None, :]
    else:
        word = ((step + 1) * RATE >> 3) - (RATE >> 3) >> 4
        shift = ((step[:, :, None] + one[None, None, :] + 1) * RATE >> 3) - (RATE >> 3)
        shift -= word[:, :, None] * 16
    place = ring_tile + ring * words
    bits = tl.load(place + word % words).to(tl.int32) & 0xFFFF
    bits |= tl.load(place + (word + 1) % words).to(tl.int32) << 16
    state = bits[:, :, None] >> shift
    state &= 2**WINDOW - 1
    if WINDOW <= KEPT:
        found = tl.gather(table, tl.reshape(state, (column.shape[0] * ROWS,)), 0)
        levels = tl.reshape(found, (column.shape[0], ROWS))
    else:
        levels = tl.load(table_pointer + tl.reshape(state, (column.shape[0], ROWS)))
    return levels


@triton.jit
def kept_table(table_pointer, WINDOW: tl.constexpr):
    """The whole table, if it is one to keep; else a number that nobody reads."""
    return tl.load(table_pointer + tl.arange(0, 2**WINDOW)) if WINDOW <= KEPT else 0


@triton.jit
def inside(column, columns, RAGGED: tl.constexpr):
    """Columns of the layer: those behind its last one become the last, as they count nowhere."""
    return tl.minimum(column, columns - 1) if RAGGED else column


@triton.jit(do_not_specialize=["tokens", "x_segment", "height", "parts", "rounds"])
def trellis_linear(
    x_pointer,
    codes_pointer,
    table_pointer,
    scale_pointer,
    tiles_pointer,
    z_pointer,
    tokens,
    columns,
    x_segment,
    outputs,
    tile_words,
    words,
    height,
    parts,
    rounds,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    RATE: tl.constexpr,
    WINDOW: tl.constexpr,
    SPLIT: tl.constexpr,
    RAGGED: tl.constexpr,
    PTX: tl.constexpr,
):
    """One tile ``[TOKENS, ROWS]`` of outputs from one of ``SPLIT`` parts of the columns."""
    number, share = tl.program_id(0) // parts, tl.program_id(2)
    tile = tiles_pointer + number * 3
    segment, start, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    first_row = tl.program_id(0) % parts * ROWS
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, WIDTH)
    present = token[:, None] < tokens
    x_tile = x_pointer + segment.to(tl.int64) * x_segment
    x_tile += token.to(tl.int64)[:, None] * columns + column[None, :]
    ring_tile = codes_pointer + number.to(tl.int64) * tile_words
    table = kept_table(table_pointer, WINDOW)
    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for turn in range(rounds * share // SPLIT, rounds * (share + 1) // SPLIT):
        first = turn * WIDTH
        x = load_columns(x_tile, first, present, column, columns, RAGGED)
        weight = ring_levels(
            ring_tile,
            table_pointer,
            table,
            inside(first + column, columns, RAGGED),
            first_row,
            height,
            words,
            ROWS,
            SPAN,
            GROUP,
            RATE,
            WINDOW,
        )
        total += multiply(x, weight, PTX)
    total *= tl.load(scale_pointer + segment)
    within = first_row + tl.arange(0, ROWS)
    place = (share * tokens + token).to(tl.int64)[:, None] * outputs + (start + within)[None, :]
    tl.store(z_pointer + place, total, mask=present & (within[None, :] < count))


@triton.jit(do_not_specialize=["first_tile", "first_output", "height", "parts"])
def trellis_expand(
    codes_pointer,
    table_pointer,
    scale_pointer,
    tiles_pointer,
    w_pointer,
    first_tile,
    first_output,
    columns,
    tile_words,
    words,
    height,
    parts,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    SPAN: tl.constexpr,
    GROUP: tl.constexpr,
    RATE: tl.constexpr,
    WINDOW: tl.constexpr,
):
    """Levels times the scale, of rows of one tile in ``WIDTH`` columns: computed in fp32."""
    number = first_tile + tl.program_id(0) // parts
    tile = tiles_pointer + number * 3
    segment, start, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    first_row = tl.program_id(0) % parts * ROWS
    column = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    weight = ring_levels(
        codes_pointer + number.to(tl.int64) * tile_words,
        table_pointer,
        kept_table(table_pointer, WINDOW),
        inside(column, columns, True),
        first_row,
        height,
        words,
        ROWS,
        SPAN,
        GROUP,
        RATE,
        WINDOW,
    )
    weight *= tl.load(scale_pointer + segment)
    within = first_row + tl.arange(0, ROWS)
    place = (start - first_output + within).to(tl.int64)[None, :] * columns + column[:, None]
    wanted = (within[None, :] < count) & (column[:, None] < columns)
    tl.store(w_pointer + place, weight.to(w_pointer.dtype.element_ty), mask=wanted)
