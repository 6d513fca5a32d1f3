"""The kernel of rotations: random signs and a Hadamard transform of a run of numbers, in registers.

Additions are those of the format, in its order: pairs one number apart, then two, four, ... apart,
so that rotations in fp32 are the format's to the last bit. The compiler adds up in a thread's own
registers what it can, and sends the rest through shared memory a few times, whatever the size.
"""

import triton
import triton.language as tl


@triton.jit
def added_pairs(values, APART: tl.constexpr):
    """Sums and differences of pairs that stand so far apart, ``f32[n]``."""
    size: tl.constexpr = values.shape[0]
    pairs = tl.reshape(values, (size // (2 * APART), 2, APART))
    first, second = tl.split(tl.permute(pairs, (0, 2, 1)))
    both = tl.permute(tl.join(first + second, first - second), (0, 2, 1))
    return tl.reshape(both, (size,))


@triton.jit(do_not_specialize=["part_stride"])
def rotate(
    in_pointer,
    signs_pointer,
    bias_pointer,
    out_pointer,
    width,
    in_stride,
    part_stride,
    out_stride,
    factor,
    RUN: tl.constexpr,
    STAGES: tl.constexpr,
    PARTS: tl.constexpr,
    BEFORE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """``RUN`` numbers of one row, whose blocks have ``2^STAGES``; ``PARTS`` of it are added up.

    Signs come ``BEFORE`` the transform, for inputs, or behind it. ``factor`` is the inverse norm.
    """
    place = tl.program_id(1) * RUN + tl.arange(0, RUN)
    token, turn = tl.program_id(0).to(tl.int64), tl.program_id(2).to(tl.int64)
    inside = place < width
    signs = tl.load(signs_pointer + turn * width + place, mask=inside, other=0).to(tl.float32)
    values = tl.zeros((RUN,), dtype=tl.float32)
    for part in tl.static_range(PARTS):
        row = in_pointer + part * part_stride + token * in_stride
        values += tl.load(row + place, mask=inside, other=0.0).to(tl.float32)
    if BEFORE:
        values *= signs
    for stage in tl.static_range(STAGES):
        values = added_pairs(values, 2**stage)
    values *= factor
    if not BEFORE:
        values *= signs
    if HAS_BIAS:
        values += tl.load(bias_pointer + place, mask=inside, other=0.0).to(tl.float32)
    out = out_pointer + (turn * tl.num_programs(0) + token) * out_stride
    tl.store(out + place, values.to(out_pointer.dtype.element_ty), mask=inside)
