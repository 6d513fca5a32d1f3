"""Products with bit planes and codes of 1, 2 and 4 bits, by tables: the kernels for AVX-512.

Some bits of a row name one of a table's numbers: sums of the inputs of their columns, with signs or
codes. A table is computed once for a row of activations and serves all rows of the weight, 32 of
them with one instruction, whose index has five bits: of signs five are taken, of wider codes four,
so that no code is cut. A *unit* is 16 bytes of a row: 128 columns of one plane, or 128 / bits
columns of codes. Tables are made for some units and some rows of activations at a time, so that
they stay in the cache next to the processor.
"""

from collections.abc import Sequence

from llvmlite import ir

from .emitter import (
    BODY,
    F16,
    F32,
    I32,
    I64,
    TEAM,
    Function,
    Value,
    filled,
    least,
    number,
    vector,
    wait,
    write_entries,
)
from .tables import HALF, WIDE, WORD, table_bytes, write_tables
from .transposing import transpose

OPERANDS = (
    "inputs", "input_bytes", "count", "chunk", "span",  # fp32 [count, columns]; of a pass
    "groups", "units", "unit_bytes", "unit_inputs", "unit_scales",  # i64 [units] each
    "columns", "bits", "row_bytes", "rows", "padded",  # column scales fp32 [units, 128]; planes
    "scales", "places", "bias",  # fp16 [groups, padded] twice, fp32 [padded]
    "tables", "steps", "sums",  # i16 [span, chunk, numbers of all tables]; fp32 [span, chunk] twice
    "result",  # fp32 [count, padded]
)  # fmt: skip
WORDS = 4
"""Vectors of 32 rows that are looked up together: a table is loaded once for them."""
GROUP_ROWS = 32 * WORDS
PART_BYTES = 9 * 64
"""Of the bits of a unit and 32 rows: 8 words, and what three times five bits leave of each."""
GROUP_BYTES = PART_BYTES * WORDS
MOST_GROUPS = 4
"""Groups of rows that take turns at a table while it is near."""
SCRATCH = {"words": GROUP_BYTES, "scales": 4 * GROUP_ROWS, "places": 4 * GROUP_ROWS}
"""Bytes of a group that a thread holds."""
TOGETHER = (2, 1)
"""Rows of activations that are looked up with one index."""
PERMUTE = "llvm.x86.avx512.permvar.hi.512"
ADD_PAIRS = "llvm.x86.avx512.pmaddw.d.512"


def write(module: Value, bits: int, place: str) -> str:
    """Write the kernel for codes of ``bits`` bits, 0 for signs with column scales.

    Args:
        module: where to.
        bits: of a code.
        place: how grids are placed: ``none``, by a minimum (``float``), by a code (``packed``).

    Returns:
        The kernel's name. It takes operands, number and count of threads, and a barrier.
    """
    name = f"lookup_{bits}_{place}"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    _, thread, threads, barrier = function.arguments
    at = function.at
    rounded = function.scratch(256)
    scratch = {name: function.scratch(MOST_GROUPS * size) for name, size in SCRATCH.items()}
    groups = at.sdiv(given["padded"], number(GROUP_ROWS))
    from_group, to_group = function.share(groups, thread, threads)
    kind = (bits, place)
    with (
        function.loop(number(0), given["count"], given["chunk"]) as turn,
        function.loop(number(0), given["units"], given["span"]) as span,
    ):
        rows = (turn.index, least(function, at.sub(given["count"], turn.index), given["chunk"]))
        some = least(function, at.sub(given["units"], span.index), given["span"])
        from_unit, to_unit = function.share(some, thread, threads)
        write_tables(function, given, kind, rows, (span.index, from_unit, to_unit), rounded)
        wait(function, barrier)
        with function.loop(from_group, to_group, given["groups"]) as tile:
            stop = least(function, at.add(tile.index, given["groups"]), to_group)
            tile_groups = (tile.index, stop)
            _start_tile(function, given, rows, tile_groups, span.index)
            _write_tile(function, given, kind, rows, tile_groups, (span.index, some), scratch)
        wait(function, barrier)
    at.ret_void()
    write_entries(module, name)
    return name


def _start_tile(
    function: Function,
    given: dict[str, Value],
    rows: tuple[Value, Value],
    groups: tuple[Value, Value],
    first_unit: Value,
) -> None:
    """Begin some groups of rows of the result with the bias, before the first units."""
    at = function.at
    first, here = rows
    result = function.pointer(given["result"])
    begins = at.icmp_signed("==", first_unit, number(0))
    stop = at.select(begins, groups[1], groups[0])
    with function.loop(groups[0], stop) as group:
        row = function.times(group.index, GROUP_ROWS)
        bias = function.offset(function.pointer(given["bias"]), function.times(row, 4))
        start = [function.load(WIDE, bias, number(64 * i)) for i in range(2 * WORDS)]
        with function.loop(number(0), here) as each:
            target = _result(function, given, result, at.add(first, each.index), row)
            for i, value in enumerate(start):
                function.store(value, target, number(64 * i))


def _write_tile(
    function: Function,
    given: dict[str, Value],
    kind: tuple[int, str],
    rows: tuple[Value, Value],
    groups: tuple[Value, Value],
    units: tuple[Value, Value],
    scratch: dict[str, Value],
) -> None:
    """Add some units to some groups of rows of the result, for some rows of activations."""
    at = function.at
    (first, here), (from_group, to_group) = rows, groups
    result = function.pointer(given["result"])
    first_unit, some = units
    with function.loop(number(0), some) as unit:
        eight = at.shl(at.add(first_unit, unit.index), number(3))
        shift = function.load(I64, function.pointer(given["unit_bytes"]), eight)
        scale = function.load(I64, function.pointer(given["unit_scales"]), eight)
        source = function.offset(function.pointer(given["bits"]), shift)
        with function.loop(from_group, to_group) as group:
            place = at.sub(group.index, from_group)
            row = function.times(group.index, GROUP_ROWS)
            words = function.offset(scratch["words"], function.times(place, GROUP_BYTES))
            with function.loop(number(0), number(WORDS)) as part:
                begin = at.add(row, function.times(part.index, 32))
                to = function.offset(words, function.times(part.index, PART_BYTES))
                transpose(function, given, source, begin, to, kind[0] < 2)
            for name in ("scales", "places")[: 1 if kind[1] == "none" else 2]:
                to = function.offset(scratch[name], function.times(place, 4 * GROUP_ROWS))
                _widen(function, given, name, scale, row, to)
        for many, each in function.taken(here, TOGETHER):
            base = at.add(at.mul(unit.index, given["chunk"]), each.index)
            with function.loop(from_group, to_group) as group:
                place = at.sub(group.index, from_group)
                row = function.times(group.index, GROUP_ROWS)
                near = {
                    name: function.offset(scratch[name], function.times(place, size))
                    for name, size in SCRATCH.items()
                }
                sums = _look_up(function, given, kind[0], base, near["words"], many)
                for i in range(many):
                    which = at.add(first, at.add(each.index, number(i)))
                    target = _result(function, given, result, which, row)
                    _add_up(function, given, kind, at.add(base, number(i)), sums[i], near, target)


def _result(
    function: Function, given: dict[str, Value], result: Value, which: Value, row: Value
) -> Value:
    at = function.at
    return function.offset(result, function.times(at.add(at.mul(which, given["padded"]), row), 4))


def _widen(
    function: Function, given: dict[str, Value], name: str, scale: Value, row: Value, to: Value
) -> None:
    """fp16 numbers of a group of rows to fp32."""
    at = function.at
    start = function.times(at.add(at.mul(scale, given["padded"]), row), 2)
    source = function.offset(function.pointer(given[name]), start)
    for i in range(2 * WORDS):
        value = function.load(vector(F16, 16), source, number(32 * i))
        function.store(at.fpext(value, WIDE), to, number(64 * i), align=64)


def _look_up(
    function: Function, given: dict[str, Value], bits: int, base: Value, words: Value, rows: int
) -> list[list[Value]]:
    """Sums of a unit, i16[32] for each row of activations and group of rows of the weight."""
    at = function.at
    size = table_bytes(bits)
    tables = function.offset(function.pointer(given["tables"]), function.times(base, size))
    zero = filled(WORD, 0)
    width, each = (5, 3) if bits < 2 else (4, 4)

    def indices(place: Value) -> list[Value]:
        return [
            function.load(WORD, words, at.add(place, number(PART_BYTES * i)), align=64)
            for i in range(WORDS)
        ]

    def add(sums: Sequence[Value], found: Sequence[Value], place: Value) -> list[Value]:
        added = list(sums)
        for m in range(rows):
            table = _table(function, bits, tables, at.add(place, number(size * m)))
            for i in range(WORDS):
                value = function.call(PERMUTE, WORD, [table, found[i]])
                added[m * WORDS + i] = at.add(added[m * WORDS + i], value)
        return added

    def shifted(found: Sequence[Value]) -> list[Value]:
        return [at.lshr(value, filled(WORD, width)) for value in found]

    step = size // 8 if bits >= 2 else 192
    with function.loop(number(0), number(8), carried=[zero] * (rows * WORDS)) as word:
        found = indices(function.times(word.index, 64))
        place = function.times(word.index, step)
        sums: Sequence[Value] = word.values
        for part in range(each):
            found = shifted(found) if part else found
            sums = add(sums, found, at.add(place, number(step // each * part)))
        word.values = list(sums)
    sums = word.values
    if bits < 2:
        found = indices(number(64 * 8))
        sums = add(sums, found, number(64 * 24))
        sums = add(sums, shifted(found), number(64 * 25))
    return [list(sums[m * WORDS : (m + 1) * WORDS]) for m in range(rows)]


def _table(function: Function, bits: int, tables: Value, place: Value) -> Value:
    if bits < 2:
        return function.load(WORD, tables, place, align=64)
    half = function.load(HALF, tables, place, align=32)
    # Twice, for an index has five bits: the fifth belongs to the next four.
    return function.shuffle(half, half, [*range(16)] * 2)


def _add_up(
    function: Function,
    given: dict[str, Value],
    kind: tuple[int, str],
    place: Value,
    sums: Sequence[Value],
    near: dict[str, Value],
    target: Value,
) -> None:
    """Scale the sums of a unit, and add them to the result."""
    at = function.at
    bits, placed = kind
    four = function.times(place, 4)
    step = function.splat(function.load(F32, function.pointer(given["steps"]), four), 16)
    if placed != "none":
        total = function.splat(function.load(F32, function.pointer(given["sums"]), four), 16)
        middle = at.fmul(total, filled(WIDE, (2**bits - 1) / 2))
    evens = ir.Constant(WORD, [1, 0] * 16)
    long = vector(I32, 16)
    for i in range(WORDS):
        low = function.call(ADD_PAIRS, long, [sums[i], evens])
        high = at.ashr(at.bitcast(sums[i], long), filled(long, 16))
        for half, whole in enumerate((low, high)):
            which = 2 * i + half
            there = number(64 * which)
            value = at.sitofp(whole, WIDE)
            so_far = function.load(WIDE, target, there)
            scale = function.load(WIDE, near["scales"], there, align=64)
            if placed != "none":
                offset = function.load(WIDE, near["places"], there, align=64)
            if placed == "none":
                factor = at.fmul(scale, step)
                so_far = function.multiply_add(value, factor, so_far)
            elif placed == "float":
                inner = function.multiply_add(value, step, middle)
                so_far = function.multiply_add(inner, scale, so_far)
                so_far = function.multiply_add(offset, total, so_far)
            else:
                inner = function.multiply_add(value, step, middle)
                below = at.fneg(offset)
                inner = function.multiply_add(below, total, inner)
                so_far = function.multiply_add(inner, scale, so_far)
            function.store(so_far, target, there)
