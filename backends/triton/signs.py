"""Bits to signed scales inside a kernel: two of them for a shift and one logic operation.

A sign is one bit of bf16 and of fp16, so a plane needs no plus and minus one: the bit is moved to
the sign bit of the column's scale. On a GPU that is written in PTX, which works on a register of
two numbers; Triton's interpreter runs the same formula number by number.
"""

import triton
import triton.language as tl

# Four bytes of a register to four 16-bit numbers in two registers.
SPREAD = tl.constexpr("prmt.b32 $0, $2, 0, 0x4140; prmt.b32 $1, $2, 0, 0x4342;")
# Two numbers $1, shifted left by $2 (two equal halves, of which the shift reads five bits); where
# the sign bit is not set then, that of $3 is flipped: 0xA6 is (not t and mask) xor $3.
SIGN = tl.constexpr(
    "{.reg .b32 t; shf.l.wrap.b32 t, 0, $1, $2; lop3.b32 $0, t, 0x80008000, $3, 0xA6;}"
)


@triton.jit
def spread(packed, PTX: tl.constexpr):
    """Bytes to 16-bit numbers of the same value or, in their low bits, of the same bits."""
    if PTX:
        wide = tl.inline_asm_elementwise(
            SPREAD,
            "=r,=r,r",
            [packed],
            dtype=tl.int16,
            is_pure=True,
            pack=4,
        )
    else:
        wide = packed.to(tl.int16)
    return wide


@triton.jit
def signed_scales(packed, scale, HIGH: tl.constexpr, PTX: tl.constexpr):
    """Signs of a sub-plane times the scales of its columns.

    ``packed`` is int16[W / 8, rows], a byte of the layout in the low or, with ``HIGH``, in the high
    half; ``scale`` is [8, W / 8] in the dtype of the activations, and so is what comes out,
    [W, rows].
    """
    shift = ((7 if HIGH else 15) - tl.arange(0, 8)).to(tl.int16)
    bits, shifts = tl.broadcast(packed[None, :, :], shift[:, None, None])
    bits, scales = tl.broadcast(bits, scale[:, :, None])
    # Two numbers of a register must have one shift, so they may not lie along the first axis: there
    # a tile of 32 columns can be spread so thin that nothing else is left to a thread.
    if PTX and packed.shape[0] > 4:
        found = tl.inline_asm_elementwise(
            SIGN,
            "=r,r,r,r",
            [bits, shifts, scales],
            dtype=scale.dtype,
            is_pure=True,
            pack=2,
        )
    else:
        # Bit 1 is plus, and the sign bit of a float is set where it is minus.
        minus = ~(bits << shifts) & -32768
        found = (minus ^ scales.to(tl.int16, bitcast=True)).to(scale.dtype, bitcast=True)
    return tl.reshape(found, (8 * packed.shape[0], packed.shape[1]))


@triton.jit
def scaled(value, factor, PTX: tl.constexpr):
    """``value * factor`` of one dtype, rounded to it."""
    if PTX:
        found = value * factor
    else:
        # The interpreter keeps bf16 as bits, and does not calculate with them.
        found = (value.to(tl.float32) * factor.to(tl.float32)).to(value.dtype)
    return found


@triton.jit
def scaled_sum(value, factor, other, PTX: tl.constexpr):
    """``value * factor + other`` of one dtype, rounded once: a GPU fuses it."""
    if PTX:
        found = tl.fma(value, tl.broadcast_to(factor, value.shape), other)
    else:
        wide = value.to(tl.float32) * factor.to(tl.float32) + other.to(tl.float32)
        found = wide.to(value.dtype)
    return found


@triton.jit
def multiply(x, weight, PTX: tl.constexpr):
    """``[tokens, W] . [W, rows]`` with fp32 sums."""
    if PTX:
        product = tl.dot(x, weight)
    else:
        product = tl.dot(x.to(tl.float32), weight.to(tl.float32), input_precision="ieee")
    return product
