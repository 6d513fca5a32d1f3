"""The tables of look-ups: sums of a few inputs, for all signs or codes that their columns may have.

Within a unit sums are whole numbers of 16 bits, exact in any order: inputs times column scales are
rounded once to as many steps as the sum of their magnitudes allows, so that no sum can overflow.
The error of that, at most 3.3 / 2896 of their norm, is that of rounding them to bf16.
"""

from collections.abc import Sequence

from llvmlite import ir

from .emitter import F32, I16, I64, Function, Value, number, vector

WORD, WIDE, HALF = vector(I16, 32), vector(F32, 16), vector(I16, 16)


def table_bytes(bits: int) -> int:
    """Of all tables of a unit and a row of activations: 26 of 32 numbers, or 32 of 16."""
    return 26 * 64 if bits < 2 else 32 * 32


def _largest(bits: int) -> int:
    """Largest factor of an input: 1 for signs; codes count from the middle, in halves."""
    return (1 << max(bits, 1)) - 1


def _limit(bits: int) -> float:
    """Sum of magnitudes of a unit before they are rounded: with all halves it stays below 2^15."""
    columns = 128 // max(bits, 1)
    return 32767.0 - _largest(bits) * columns / 2


def write_tables(
    function: Function,
    given: dict[str, Value],
    kind: tuple[int, str],
    rows: tuple[Value, Value],
    units: tuple[Value, Value, Value],
    rounded: Value,
) -> None:
    """All tables of some units, for some rows of activations."""
    at = function.at
    (bits, place), (first, here) = kind, rows
    inputs, columns = function.pointer(given["inputs"]), function.pointer(given["columns"])
    vectors, limit = 8 // max(bits, 1), ir.Constant(F32, _limit(bits))
    span, from_unit, to_unit = units
    with function.loop(from_unit, to_unit) as unit:
        which = at.add(span, unit.index)
        start = function.load(I64, function.pointer(given["unit_inputs"]), at.shl(which, number(3)))
        scale = function.offset(columns, function.times(which, 512))
        with function.loop(number(0), here) as row:
            moved = at.mul(at.add(first, row.index), given["input_bytes"])
            source = function.offset(function.offset(inputs, moved), function.times(start, 4))
            values = [function.load(WIDE, source, number(64 * i)) for i in range(vectors)]
            plain = values
            if not bits:
                scales = [function.load(WIDE, scale, number(64 * i)) for i in range(vectors)]
                values = [at.fmul(x, c) for x, c in zip(values, scales, strict=True)]
            sizes = [function.call("llvm.fabs.v16f32", WIDE, [x]) for x in values]
            size = at.fmul(
                function.sum(_sum_of(function, sizes)), ir.Constant(F32, float(_largest(bits)))
            )
            positive = at.fcmp_ordered(">", size, ir.Constant(F32, 0.0))
            steps = at.select(positive, at.fdiv(limit, size), ir.Constant(F32, 0.0))
            place_ = at.add(at.mul(unit.index, given["chunk"]), row.index)
            step = at.fdiv(size, limit)
            if bits:
                step = at.fmul(step, ir.Constant(F32, 0.5))
            function.store(step, function.pointer(given["steps"]), function.times(place_, 4))
            if place != "none":
                total = function.sum(_sum_of(function, plain))
                function.store(total, function.pointer(given["sums"]), function.times(place_, 4))
            many = function.splat(steps, 16)
            for i, value in enumerate(values):
                function.store(function.whole(value, many), rounded, number(32 * i), align=32)
            target = function.offset(
                function.pointer(given["tables"]), function.times(place_, table_bytes(bits))
            )
            _write_sums(function, bits, rounded, target)


def _write_sums(function: Function, bits: int, rounded: Value, target: Value) -> None:
    """The numbers of all tables of a unit."""
    at = function.at
    if bits < 2:
        with function.loop(number(0), number(8)) as word:
            for third in range(3):
                columns = [at.add(function.times(word.index, 32), number(2 * (5 * third + k)))
                           for k in range(5)]  # fmt: skip
                place = at.add(function.times(word.index, 192), number(64 * third))
                _write_table(function, 1, WORD, rounded, columns, target, place)
        rest = [number(2 * (16 * word + 15)) for word in range(8)]
        for which, columns in enumerate((rest[:5], rest[5:])):
            _write_table(function, 1, WORD, rounded, columns, target, number(64 * (24 + which)))
        return
    members = 4 // bits
    with function.loop(number(0), number(32)) as table:
        first = function.times(table.index, 2 * members)
        columns = [at.add(first, number(2 * member)) for member in range(members)]
        place = function.times(table.index, 32)
        _write_table(function, bits, HALF, rounded, columns, target, place)


def _write_table(
    function: Function,
    bits: int,
    kind: Value,
    rounded: Value,
    columns: Sequence[Value],
    target: Value,
    place: Value,
) -> None:
    """One table: the sums for all codes of some columns; an index may have more bits than these."""
    at = function.at
    total, mask = None, 2**bits - 1
    for member, column in enumerate(columns):
        value = function.load(I16, rounded, column)
        codes = [entry >> bits * member & mask for entry in range(kind.count)]
        factors = ir.Constant(kind, [2 * code - mask for code in codes])
        product = at.mul(function.splat(value, kind.count), factors)
        total = product if total is None else at.add(total, product)
    function.store(total, target, place, align=32)


def _sum_of(function: Function, values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = function.at.fadd(total, value)
    return total
