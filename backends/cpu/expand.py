"""Weights of some rows written out, from planes or codes: kernels for every processor.

The arithmetic is that of the format, in fp32 and in its order, so the numbers are those of the
reference; where bf16 is asked for they are rounded to it, once, to nearest even. ``dot`` does not
write them: it multiplies them with a few rows of activations as they come, in fp32.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

from llvmlite import ir

from .emitter import (
    BODY,
    F16,
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    TEAM,
    Function,
    Value,
    filled,
    number,
    vector,
    write_entries,
)

OPERANDS = (
    "first", "count", "padded",  # rows of the weight; rows that scales are padded to
    "blocks", "width", "orders",  # blocks or grids of a row, their columns; i64 [blocks]
    "bits", "row_bytes", "columns",  # planes or codes; column scales fp32 [planes, width]
    "scales", "places",  # fp16 [planes or groups, padded]
    "inputs", "input_bytes", "many", "bias",  # fp32 [many, columns], fp32 [rows]: of dot
    "target", "target_bytes",  # [count, columns], or fp32 [many, padded]
)  # fmt: skip
Target = Literal["f32", "bf16", "dot"]
TOGETHER = (4, 1)
"""Rows of activations that are multiplied together."""
LANES = 16
WIDE, LONG = vector(F32, LANES), vector(I32, LANES)


def vectors_of(width: int) -> int | None:
    """Vectors that a block is taken in at a time; None if it does not consist of such."""
    return next((count for count in (4, 2, 1) if width % (LANES * count) == 0), None)


def write(module: Value, bits: int, place: str, vectors: int, target: Target) -> str:
    """Write a kernel.

    Args:
        module: where to.
        bits: of a code, 0 for planes of signs.
        place: how grids are placed: ``none``, by a minimum (``float``), by a code (``packed``).
        vectors: of 16 columns that are taken at a time.
        target: what becomes of the weights.

    Returns:
        The kernel's name.
    """
    name = f"expand_{bits}_{place}_{vectors}_{target}"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    _, thread, threads, _ = function.arguments
    at = function.at
    start, stop = function.share(given["count"], thread, threads)
    kind = (bits, place, vectors)
    if target == "dot":
        for many, each in function.taken(given["many"], TOGETHER):
            with function.loop(start, stop) as row:
                _dot(function, given, kind, row.index, each.index, many)
    else:
        with function.loop(start, stop) as row:
            _row(function, given, kind, row.index, target)
    at.ret_void()
    write_entries(module, name)
    return name


def _row(
    function: Function, given: dict[str, Value], kind: tuple[int, str, int], row: Value, target: str
) -> None:
    at = function.at
    size = 4 if target == "f32" else 2
    to = function.offset(function.pointer(given["target"]), at.mul(row, given["target_bytes"]))
    for column, values, _ in _weights(function, given, kind, at.add(given["first"], row), ()):
        for i, value in enumerate(values):
            made = value if target == "f32" else _rounded(function, value)
            function.store(made, to, at.add(function.times(column, size), number(16 * size * i)))


def _rounded(function: Function, value: Value) -> Value:
    """fp32 to bf16, to nearest even; the numbers are finite."""
    at = function.at
    whole = at.bitcast(value, LONG)
    odd = at.and_(at.lshr(whole, filled(LONG, 16)), filled(LONG, 1))
    up = at.add(at.add(whole, filled(LONG, 0x7FFF)), odd)
    return at.trunc(at.lshr(up, filled(LONG, 16)), vector(I16, LANES))


def _dot(
    function: Function,
    given: dict[str, Value],
    kind: tuple[int, str, int],
    row: Value,
    first: Value,
    many: int,
) -> None:
    at = function.at
    inputs = function.pointer(given["inputs"])
    sources = [
        function.offset(inputs, at.mul(at.add(first, number(m)), given["input_bytes"]))
        for m in range(many)
    ]
    which = at.add(given["first"], row)
    start = [filled(WIDE, 0.0)] * many
    sums: Sequence[Value] = start
    for column, values, carried in _weights(function, given, kind, which, start):
        sums = list(carried.values)
        for i, value in enumerate(values):
            offset = at.add(function.times(column, 4), number(64 * i))
            sums = [
                function.multiply_add(value, function.load(WIDE, source, offset), so_far)
                for source, so_far in zip(sources, sums, strict=True)
            ]
        carried.values = sums
    bias = function.load(F32, function.pointer(given["bias"]), function.times(which, 4))
    for m in range(many):
        total = at.fadd(function.sum(carried.values[m]), bias)
        to = at.add(at.mul(at.add(first, number(m)), given["padded"]), which)
        function.store(total, function.pointer(given["target"]), function.times(to, 4))


def _weights(
    function: Function,
    given: dict[str, Value],
    kind: tuple[int, str, int],
    row: Value,
    carried: Sequence[Value],
) -> Iterator[tuple[Value, list[Value], Value]]:
    """The loops over a row: gives a column, the weights from there on, and the innermost loop.

    Whoever takes them writes what becomes of the weights, and sets what the loop carries.
    """
    at = function.at
    bits, place, vectors = kind
    source = function.offset(function.pointer(given["bits"]), at.mul(row, given["row_bytes"]))
    step = LANES * vectors
    with function.loop(number(0), given["blocks"], carried=[*carried, number(0)]) as block:
        begin = block.values[-1]
        order = number(1)
        if not bits:
            orders = function.pointer(given["orders"])
            order = function.load(I64, orders, function.times(block.index, 8))
        first_column = at.mul(block.index, given["width"])
        with function.loop(number(0), given["width"], step, carried=block.values[:-1]) as part:
            column = at.add(first_column, part.index)
            if bits:
                values = _codes(
                    function, given, (bits, place), source, column, block.index, row, vectors
                )
            else:
                values = _signs(function, given, source, (begin, order), part.index, row, vectors)
            yield column, values, part
        block.values = [*part.values, at.add(begin, order)]
    part.values = block.values[:-1]


def _scale(
    function: Function, given: dict[str, Value], name: str, group: Value, row: Value
) -> Value:
    at = function.at
    place = at.add(at.mul(group, given["padded"]), row)
    half = function.load(F16, function.pointer(given[name]), function.times(place, 2))
    return at.fpext(half, F32)


def _signs(
    function: Function,
    given: dict[str, Value],
    source: Value,
    planes: tuple[Value, Value],
    column: Value,
    row: Value,
    vectors: int,
) -> list[Value]:
    """Weights of one block from its planes, added in their order."""
    at = function.at
    begin, order = planes
    width = given["width"]
    zero = filled(WIDE, -0.0)
    with function.loop(begin, at.add(begin, order), carried=[zero] * vectors) as plane:
        factor = function.splat(_scale(function, given, "scales", plane.index, row), LANES)
        start = at.mul(plane.index, width)
        scales = function.offset(
            function.pointer(given["columns"]), function.times(at.add(start, column), 4)
        )
        bits = function.offset(source, at.lshr(at.add(start, column), number(3)))
        made = []
        for i, so_far in enumerate(plane.values):
            word = function.load(I16, bits, number(2 * i))
            signs = at.bitcast(word, vector(I1, LANES))
            value = at.fmul(factor, function.load(WIDE, scales, number(64 * i)))
            made.append(at.fadd(so_far, at.select(signs, value, at.fneg(value))))
        plane.values = made
    return list(plane.values)


def _codes(
    function: Function,
    given: dict[str, Value],
    kind: tuple[int, str],
    source: Value,
    column: Value,
    group: Value,
    row: Value,
    vectors: int,
) -> list[Value]:
    """Weights on a grid: scale * code + minimum, or scale * (code - zero)."""
    at = function.at
    bits, place = kind
    scale = function.splat(_scale(function, given, "scales", group, row), LANES)
    offset = _scale(function, given, "places", group, row)
    if place == "packed":
        offset = at.fneg(at.fmul(offset, at.extract_element(scale, ir.Constant(I32, 0))))
    shift = function.splat(offset, LANES)
    base = function.offset(source, at.lshr(function.times(column, bits), number(3)))
    made = []
    for i in range(vectors):
        codes = _fields(function, base, bits, i)
        value = at.fmul(scale, at.uitofp(codes, WIDE))
        made.append(at.fadd(value, shift))
    return made


def _fields(function: Function, base: Value, bits: int, which: int) -> Value:
    """16 codes as 32-bit numbers."""
    at = function.at
    start = number(2 * bits * which)
    if bits == 8:
        return at.zext(function.load(vector(I8, LANES), base, start), LONG)
    if bits == 4:
        pairs = at.zext(function.load(vector(I8, 8), base, start), vector(I32, 8))
        twice = function.shuffle(pairs, pairs, [k // 2 for k in range(LANES)])
        shifts = ir.Constant(LONG, [0, 4] * 8)
    else:
        word = function.load(ir.IntType(LANES * bits), base, start)
        twice = function.splat(word if bits == 2 else at.zext(word, I32), LANES)
        shifts = ir.Constant(LONG, [bits * k for k in range(LANES)])
    return at.and_(at.lshr(twice, shifts), filled(LONG, 2**bits - 1))
