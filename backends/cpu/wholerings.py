"""Products with trellis codes by whole numbers: the kernel for AVX-512.

Levels are whole numbers as they are. Inputs are rounded to whole numbers of 16 bits, in steps of a
row of activations; products of two columns are added at once in 32 bits, exactly, those of a
*piece* of 64 columns, and pieces are added up in fp32.
"""

from .emitter import (
    BODY,
    F32,
    I32,
    TEAM,
    Function,
    Value,
    filled,
    least,
    number,
    vector,
    write_entries,
)
from .octets import LONG, WORD, add_pairs
from .ringlayout import TALLEST, Fields
from .ringreading import OPERANDS, decode

PIECE = 64
"""Columns that are decoded and added up together."""
LARGEST = 30000.0
"""Of an input: 64 products with the largest level, 1,107, stay below 2^31."""
TOGETHER = (8, 4, 1)
"""Rows of activations that are multiplied together."""
RINGS = 2
"""Rings of a column that take turns at a piece: their bits often share a cache line."""
ROWS = 32
"""Rows of the weight that are multiplied together."""
WIDE = vector(F32, 16)


def write(module: Value, fields: Fields, fused: bool) -> str:
    """Write the kernel.

    Args:
        module: where to.
        fields: what is looked up.
        fused: whether the processor multiplies and adds pairs of 16 bits with one instruction.

    Returns:
        The kernel's name.
    """
    name = "rings_whole"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    near, pairs = (function.scratch(2 * TALLEST * PIECE) for _ in range(2))
    _, thread, threads, _ = function.arguments
    at = function.at
    start, stop = function.share(given["rings"], thread, threads)
    with (
        function.loop(start, stop, RINGS) as some,
        function.loop(number(0), given["columns"], PIECE) as piece,
    ):
        end = least(function, at.add(some.index, number(RINGS)), stop)
        here = least(function, at.sub(given["columns"], piece.index), number(PIECE))
        both = at.lshr(at.add(here, number(1)), number(1))
        inputs = function.offset(
            function.pointer(given["inputs"]), function.times(at.mul(piece.index, given["many"]), 2)
        )
        with function.loop(some.index, end) as ring:
            decode(function, given, fields, (piece.index, here), ring.index, near)
            _pair(function, given, both, near, pairs)
            row = at.mul(ring.index, given["ring_rows"])
            with function.loop(number(0), given["ring_rows"], ROWS) as part:
                source = function.offset(pairs, function.times(part.index, 4))
                begin = at.add(row, part.index)
                for many, each in function.taken(given["many"], TOGETHER):
                    rows = (each.index, many)
                    _add_up(function, given, (inputs, both), rows, begin, source, fused)
    at.ret_void()
    write_entries(module, name)
    return name


def _pair(
    function: Function, given: dict[str, Value], both: Value, near: Value, pairs: Value
) -> None:
    """Two columns side by side, row by row; beside the last there may be anything: inputs are 0."""
    at = function.at
    nbytes = function.times(given["ring_rows"], 2)
    with (
        function.loop(number(0), both) as pair,
        function.loop(number(0), nbytes, 2 * ROWS) as part,
    ):
        place = at.add(function.times(at.mul(pair.index, nbytes), 2), part.index)
        left = function.load(WORD, near, place, align=64)
        right = function.load(WORD, near, at.add(place, nbytes), align=64)
        target = at.add(place, part.index)
        for half in range(2):
            lanes = [16 * half + lane // 2 + 32 * (lane % 2) for lane in range(32)]
            made = function.shuffle(left, right, lanes)
            function.store(made, pairs, at.add(target, number(64 * half)), align=64)


def _add_up(
    function: Function,
    given: dict[str, Value],
    span: tuple[Value, Value],
    rows: tuple[Value, int],
    begin: Value,
    source: Value,
    fused: bool,
) -> None:
    """Add a piece to 32 rows of the result, for some rows of activations."""
    at = function.at
    (inputs, both), (row, many) = span, rows
    near = function.offset(inputs, function.times(row, 2 * PIECE))
    zero = filled(LONG, 0)
    with function.loop(number(0), both, carried=[zero] * (2 * many)) as pair:
        place = function.times(at.mul(pair.index, given["ring_rows"]), 4)
        weights = [function.load(WORD, source, at.add(place, number(64 * i))) for i in range(2)]
        added = []
        for m in range(many):
            offset = at.add(function.times(pair.index, 4), number(2 * PIECE * m))
            value = at.bitcast(function.splat(function.load(I32, near, offset), 16), WORD)
            for i, weight in enumerate(weights):
                so_far = pair.values[2 * m + i]
                added.append(add_pairs(function, so_far, weight, value, fused))
        pair.values = added
    for m in range(many):
        line = at.mul(at.add(row, number(m)), given["target_bytes"])
        target = function.offset(function.pointer(given["target"]), line)
        for i in range(2):
            place = at.add(function.times(begin, 4), number(64 * i))
            value = at.sitofp(pair.values[2 * m + i], WIDE)
            function.store(at.fadd(function.load(WIDE, target, place), value), target, place)
