"""The kernel of multi-binary linears: planes go through the tensor cores as they are.

``y[M, n] = sum over sub-planes of row_scale * (x[M, W] . +-col_scale[W, n])``. One program makes a
tile of outputs from one part of the sub-planes (split-K), which it takes in pairs and singles.

- family *planes*: each sub-plane is one product, scaled in fp32 behind it: exact weights, the
  scales of columns rounded to the activations' dtype at most. Twice the products, so for few rows.
- family *tile*: the sub-planes of a pair are added up to one tile of weights in the activations'
  dtype first, then multiplied: one product, for when those are what takes time.

Where several programs share a tile, each writes its part, and the one that comes last adds them in
the order of their numbers: the same bits every time, which adding to memory at once is not.
"""

import triton
import triton.language as tl

from .signs import multiply, scaled, scaled_sum, signed_scales, spread

# Triton compiles anew for integers that are 1 or multiples of 16, and a 1 becomes a constant that
# has no methods: what varies from call to call, or aligns no address, is left out of that.


@triton.jit
def load_columns(x_tile, first, present, column, columns, RAGGED: tl.constexpr):
    """``[tokens, W]`` of the activations from column ``first`` on, zero where there is nothing."""
    # Only a last sub-block can be ragged; a mask of columns would cost every one its wide loads.
    if RAGGED:
        x = tl.load(x_tile + first, mask=present & (first + column[None, :] < columns), other=0.0)
    else:
        x = tl.load(x_tile + first, mask=present, other=0.0)
    return x


@triton.jit(do_not_specialize=["tokens", "sub_planes", "pairs", "singles"])
def binary_linear(
    x_pointer,
    pair_planes_pointer,
    single_planes_pointer,
    row_scale_pointer,
    col_scale_pointer,
    pairs_pointer,
    singles_pointer,
    tiles_pointer,
    bias_pointer,
    y_pointer,
    partial_pointer,
    arrivals_pointer,
    tokens,
    columns,
    x_stride,
    padded_rows,
    outputs,
    sub_planes,
    pairs,
    singles,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
    ADD_FIRST: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    RAGGED: tl.constexpr,
    PTX: tl.constexpr,
):
    """One tile ``[TOKENS, ROWS]`` of outputs from one of ``SPLIT`` parts of the sub-planes."""
    first_row = tl.program_id(0) * ROWS
    part = tl.program_id(2)
    # Rows are padded to 128, so that a tile never meets two segments.
    tile = tiles_pointer + first_row // 128 * 3
    segment, start, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    within = first_row % 128 + tl.arange(0, ROWS)
    row = first_row + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    column = tl.arange(0, WIDTH)
    byte = tl.arange(0, WIDTH // 8)
    x_tile = x_pointer + token.to(tl.int64)[:, None] * x_stride + column[None, :]
    present = token[:, None] < tokens
    plane_tile = row[None, :] * (WIDTH // 8) + byte[:, None]
    scale_tile = col_scale_pointer + segment.to(tl.int64) * sub_planes * WIDTH
    scale_tile += tl.arange(0, 8)[:, None] * (WIDTH // 8) + byte[None, :]
    plane_size = padded_rows.to(tl.int64) * (WIDTH // 8)

    total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
    for pair in range(pairs * part // SPLIT, pairs * (part + 1) // SPLIT):
        first = tl.load(pairs_pointer + pair * 3) * WIDTH
        x = load_columns(x_tile, first, present, column, columns, RAGGED)
        bits = tl.load(pair_planes_pointer + pair * plane_size + plane_tile)
        one_columns = tl.load(scale_tile + 2 * pair * WIDTH)
        two_columns = tl.load(scale_tile + (2 * pair + 1) * WIDTH)
        one_plane = tl.load(pairs_pointer + pair * 3 + 1)
        two_plane = tl.load(pairs_pointer + pair * 3 + 2)
        one_rows = tl.load(row_scale_pointer + one_plane * padded_rows + row)
        two_rows = tl.load(row_scale_pointer + two_plane * padded_rows + row)
        if ADD_FIRST:
            weight = signed_scales(bits, one_columns, False, PTX)
            weight = scaled(weight, one_rows.to(x.dtype)[None, :], PTX)
            other = signed_scales(bits, two_columns, True, PTX)
            weight = scaled_sum(other, two_rows.to(x.dtype)[None, :], weight, PTX)
            total += multiply(x, weight, PTX)
        else:
            product = multiply(x, signed_scales(bits, one_columns, False, PTX), PTX)
            total += product * one_rows.to(tl.float32)[None, :]
            product = multiply(x, signed_scales(bits, two_columns, True, PTX), PTX)
            total += product * two_rows.to(tl.float32)[None, :]
    for single in range(singles * part // SPLIT, singles * (part + 1) // SPLIT):
        first = tl.load(singles_pointer + single * 2) * WIDTH
        plane = 2 * pairs + single
        x = load_columns(x_tile, first, present, column, columns, RAGGED)
        bits = spread(tl.load(single_planes_pointer + single * plane_size + plane_tile), PTX)
        scales = tl.load(scale_tile + plane * WIDTH)
        scale_plane = tl.load(singles_pointer + single * 2 + 1)
        rows = tl.load(row_scale_pointer + scale_plane * padded_rows + row)
        product = multiply(x, signed_scales(bits, scales, False, PTX), PTX)
        total += product * rows.to(tl.float32)[None, :]

    output = start + within
    wanted = present & (within[None, :] < count)
    # Within a tile places fit 32 bits, which leaves registers to the sums.
    corner = (tl.program_id(1) * TOKENS).to(tl.int64) * outputs + start + first_row % 128
    place = tl.arange(0, TOKENS)[:, None] * outputs + tl.arange(0, ROWS)[None, :]
    last = True
    if SPLIT > 1:
        size = tokens.to(tl.int64) * outputs
        tl.store(partial_pointer + part * size + corner + place, total, mask=wanted)
        tl.debug_barrier()
        counter = arrivals_pointer + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        arrived = tl.atomic_add(counter, 1, sem="acq_rel")
        last = arrived == SPLIT - 1
        if last:
            total = tl.zeros((TOKENS, ROWS), dtype=tl.float32)
            for number in range(SPLIT):
                written = partial_pointer + number * size + corner
                total += tl.load(written + place, mask=wanted, other=0.0)
            tl.store(counter, 0)
    if last:
        if HAS_BIAS:
            bias = tl.load(bias_pointer + output, mask=within < count, other=0.0)
            total += bias.to(tl.float32)[None, :]
        tl.store(y_pointer + corner + place, total.to(y_pointer.dtype.element_ty), mask=wanted)


@triton.jit(do_not_specialize=["first_tile", "first_output", "sub_planes", "pairs"])
def binary_expand(
    pair_planes_pointer,
    single_planes_pointer,
    row_scale_pointer,
    col_scale_pointer,
    blocks_pointer,
    tiles_pointer,
    w_pointer,
    first_tile,
    first_output,
    columns,
    padded_rows,
    sub_planes,
    pairs,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Dense weights of a tile of rows in one sub-block, in fp32 as the format's formula says."""
    tile_number = first_tile + tl.program_id(0) // (128 // ROWS)
    first_row = tile_number * 128 + tl.program_id(0) % (128 // ROWS) * ROWS
    tile = tiles_pointer + tile_number * 3
    segment, start, count = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2)
    within = first_row % 128 + tl.arange(0, ROWS)
    row = first_row + tl.arange(0, ROWS)
    byte = tl.arange(0, WIDTH // 8)
    column = tl.arange(0, 8)[:, None] * (WIDTH // 8) + byte[None, :]
    # A set bit of a plane is plus, and makes a float minus: what is added up is the negative.
    shift = 31 - tl.arange(0, 8)
    block = blocks_pointer + tl.program_id(1) * 10
    first, order = tl.load(block) * WIDTH, tl.load(block + 1)
    plane_size = padded_rows.to(tl.int64) * (WIDTH // 8)
    total = tl.zeros((ROWS, 8, WIDTH // 8), dtype=tl.float32)
    for k in range(order):
        sub, plane = tl.load(block + 2 + k), tl.load(block + 6 + k)
        place = row[:, None] * (WIDTH // 8) + byte[None, :]
        if sub < 2 * pairs:
            start_of_pair = pair_planes_pointer + (sub // 2).to(tl.int64) * plane_size
            bits = tl.load(start_of_pair + place).to(tl.int32) >> (sub % 2 * 8)
        else:
            start_of_plane = single_planes_pointer + (sub - 2 * pairs).to(tl.int64) * plane_size
            bits = tl.load(start_of_plane + place).to(tl.int32)
        plus = (bits[:, None, :] << shift[None, :, None]) & -2147483648
        scales = tl.load(col_scale_pointer + (segment * sub_planes + sub) * WIDTH + column)
        scales = scales.to(tl.float32).to(tl.int32, bitcast=True)[None, :, :] ^ plus
        rows = tl.load(row_scale_pointer + plane * padded_rows + row).to(tl.float32)
        total -= rows[:, None, None] * scales.to(tl.float32, bitcast=True)
    place = (start - first_output + within).to(tl.int64)[:, None, None] * columns + first
    place += column[None, :, :]
    wanted = (within[:, None, None] < count) & (first + column[None, :, :] < columns)
    tl.store(w_pointer + place, total.to(w_pointer.dtype.element_ty), mask=wanted)
