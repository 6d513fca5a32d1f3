"""Activations rounded to whole numbers of 16 bits, each row in its own steps: a small kernel.

They come out in pieces of columns, the rows of a piece one after the other, as a product by whole
numbers reads them.
"""

from llvmlite import ir

from .emitter import (
    BODY,
    F32,
    I32,
    TEAM,
    Function,
    Value,
    filled,
    number,
    vector,
    write_entries,
)

OPERANDS = (
    "inputs", "count", "width",  # fp32 [count, width], whole pieces
    "rounded", "steps",  # i16 [pieces, count, PIECE], fp32 [count]
)  # fmt: skip
LANES = 16
WIDE, LONG = vector(F32, LANES), vector(I32, LANES)


def write(module: Value, piece: int, largest: float) -> str:
    """Write the kernel.

    Args:
        module: where to.
        piece: columns of a piece.
        largest: what the largest number of a row becomes.

    Returns:
        The kernel's name.
    """
    name = "round_inputs"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    _, thread, threads, _ = function.arguments
    at = function.at
    start, stop = function.share(given["count"], thread, threads)
    top = ir.Constant(F32, largest)
    with function.loop(start, stop) as row:
        source = function.offset(
            function.pointer(given["inputs"]),
            function.times(at.mul(row.index, given["width"]), 4),
        )
        with function.loop(number(0), given["width"], LANES, carried=[filled(LONG, 0)]) as part:
            value = function.load(LONG, source, function.times(part.index, 4))
            # Sizes compare as the whole numbers of their bits do, and a NaN is above all of them.
            size = at.and_(value, filled(LONG, 0x7FFFFFFF))
            above = at.icmp_signed(">", size, part.values[0])
            part.values = [at.select(above, size, part.values[0])]
        size = function.largest(at.bitcast(part.values[0], WIDE))
        positive = at.fcmp_ordered(">", size, ir.Constant(F32, 0.0))
        many = at.select(positive, at.fdiv(top, size), ir.Constant(F32, 0.0))
        step = at.fdiv(size, top)
        function.store(step, function.pointer(given["steps"]), function.times(row.index, 4))
        factor = function.splat(many, LANES)
        with (
            function.loop(number(0), given["width"], piece) as each,
            function.loop(number(0), number(piece), LANES) as part,
        ):
            value = function.load(WIDE, source, function.times(at.add(each.index, part.index), 4))
            line = at.add(at.mul(each.index, given["count"]), function.times(row.index, piece))
            place = function.times(at.add(line, part.index), 2)
            whole = function.whole(value, factor)
            function.store(whole, function.pointer(given["rounded"]), place)
    at.ret_void()
    write_entries(module, name)
    return name
