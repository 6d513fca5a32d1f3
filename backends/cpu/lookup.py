"""Products with bit planes and codes of 1, 2 and 4 bits, by tables: the kernels for AVX-512.

Some bits of a row name one of a table's numbers: sums of the inputs of their columns, with signs or
codes. A table is computed once for a row of activations and serves all rows of the weight, 32 of
them with one instruction, whose index has five bits: of signs five are taken, of wider codes four,
so that no code is cut. A *unit* is 16 bytes of a row: 128 columns of one plane, or 128 / bits
columns of codes. Tables are made for some units and some rows of activations at a time, so that
they stay in the cache next to the processor.

Within a unit sums are whole numbers of 16 bits, exact in any order: inputs times column scales are
rounded once to as many steps as the sum of their magnitudes allows, so that no sum can overflow.
The error of that, at most 3.3 / 2896 of their norm, is that of rounding them to bf16.
"""

from collections.abc import Sequence

from llvmlite import ir

from .emitter import (
    BODY,
    F16,
    F32,
    I16,
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
WORD, WIDE, HALF = vector(I16, 32), vector(F32, 16), vector(I16, 16)
PERMUTE = "llvm.x86.avx512.permvar.hi.512"
ADD_PAIRS = "llvm.x86.avx512.pmaddw.d.512"


def table_bytes(bits: int) -> int:
    """Of all tables of a unit and a row of activations: 26 of 32 numbers, or 32 of 16."""
    return 26 * 64 if bits < 2 else 32 * 32


def _largest(bits: int) -> int:
    """Largest factor of an input: 1 for signs; codes count from the middle, in halves."""
    return 2 ** max(bits, 1) - 1


def _limit(bits: int) -> float:
    """Sum of magnitudes of a unit before they are rounded: with all halves it stays below 2^15."""
    columns = 128 // max(bits, 1)
    return 32767.0 - _largest(bits) * columns / 2


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
        _write_tables(function, given, kind, rows, (span.index, from_unit, to_unit), rounded)
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


def _write_tables(
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
                function.sum(_added(function, sizes)), ir.Constant(F32, float(_largest(bits)))
            )
            positive = at.fcmp_ordered(">", size, ir.Constant(F32, 0.0))
            steps = at.select(positive, at.fdiv(limit, size), ir.Constant(F32, 0.0))
            place_ = at.add(at.mul(unit.index, given["chunk"]), row.index)
            step = at.fdiv(size, limit)
            if bits:
                step = at.fmul(step, ir.Constant(F32, 0.5))
            function.store(step, function.pointer(given["steps"]), function.times(place_, 4))
            if place != "none":
                total = function.sum(_added(function, plain))
                function.store(total, function.pointer(given["sums"]), function.times(place_, 4))
            many = function.splat(steps, 16)
            for i, value in enumerate(values):
                whole = function.call("llvm.rint.v16f32", WIDE, [at.fmul(value, many)])
                saturated = function.call("llvm.fptosi.sat.v16i32.v16f32", vector(I32, 16), [whole])
                function.store(at.trunc(saturated, HALF), rounded, number(32 * i), align=32)
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
                _transpose(function, given, source, begin, to, kind[0] < 2)
            for name in ("scales", "places")[: 1 if kind[1] == "none" else 2]:
                to = function.offset(scratch[name], function.times(place, 4 * GROUP_ROWS))
                _widen(function, given, name, scale, row, to)
        stop = number(0)
        for many in TOGETHER:
            start, stop = stop, at.and_(here, number(-many))
            with function.loop(start, stop, many) as each:
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
                        _add_up(
                            function, given, kind, at.add(base, number(i)), sums[i], near, target
                        )


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


def _transpose(
    function: Function,
    given: dict[str, Value],
    source: Value,
    begin: Value,
    to: Value,
    fives: bool,
) -> None:
    """16 bytes of each of 32 rows to 8 vectors, each with one 16-bit word of all rows.

    Where five bits are taken at a time, a ninth has the last bit of each word.

    Even places hold the rows 0 to 15, odd ones 16 to 31, so that the sums of both are widened to 32
    bits without being moved.
    """
    at = function.at
    last = at.sub(given["rows"], number(1))

    def words_of(place: int) -> Value:
        row = at.add(begin, number(place))
        row = at.select(at.icmp_signed("<", row, last), row, last)
        return function.load(
            vector(I16, 8), function.offset(source, at.mul(row, given["row_bytes"]))
        )

    quarters = []
    for j in range(8):
        rows = [words_of(4 * lane + j // 2 + 16 * (j & 1)) for lane in range(4)]
        halves = [function.shuffle(a, b, range(16)) for a, b in (rows[:2], rows[2:])]
        quarters.append(function.shuffle(halves[0], halves[1], range(32)))
    for bits in (16, 32, 64):
        quarters = _interleave(function, quarters, bits)
    words = [at.bitcast(value, WORD) for value in quarters]
    for place, word in enumerate(words):
        function.store(word, to, number(64 * place), align=64)
    if fives:
        rest = at.lshr(words[0], filled(WORD, 15))
        for place, word in list(enumerate(words))[1:]:
            bit = at.and_(at.lshr(word, filled(WORD, 15 - place)), filled(WORD, 1 << place))
            rest = at.or_(rest, bit)
        function.store(rest, to, number(64 * 8), align=64)


def _interleave(function: Function, values: list[Value], bits: int) -> list[Value]:
    """One step of a transposition of 8 x 8 words within every 128 bits."""
    at = function.at
    kind = vector(ir.IntType(bits), 512 // bits)
    lane, count = 128 // bits, 512 // bits
    distance = {16: 1, 32: 2, 64: 4}[bits]
    low = [b + i + s for b in range(0, count, lane) for i in range(lane // 2) for s in (0, count)]
    high = [place + lane // 2 for place in low]
    made: list[Value] = [None] * 8
    for k in range(8):
        if k & distance:
            continue
        left, right = (at.bitcast(values[i], kind) for i in (k, k + distance))
        made[k] = function.shuffle(left, right, low)
        made[k + distance] = function.shuffle(left, right, high)
    if bits != 64:
        return made
    order = [0, 4, 2, 6, 1, 5, 3, 7]
    return [made[place] for place in order]


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


def _added(function: Function, values: Sequence[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = function.at.fadd(total, value)
    return total
