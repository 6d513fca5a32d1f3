"""Rings of trellis codes decoded: the kernels for every processor.

Fields are cut out with vectors of 64-bit words and looked up one by one, for processors gather from
a table no faster than that: levels are whole numbers of 16 bits, or bf16, and two of them are
looked up at once where their table fits a cache. ``tile`` writes them out, columns of the weight
one after the other; ``dot`` multiplies those of a few columns with a few rows of activations while
they are near, in fp32, exactly but for the rounding of sums.
"""

from llvmlite import ir

from .emitter import (
    BODY,
    F32,
    I1,
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
    write_entries,
)
from .ringlayout import OLDEST, ROWS, STEPS, TALLEST

OPERANDS = (
    "codes", "late", "late_from",  # bits; those of the last rings, less the bytes before; a number
    "ring_bits", "rings", "rate", "ring_rows",  # of a ring; rings of a column; bits of eight steps
    "starts", "shifts", "masks", "bases", "table",  # as ``kept_rings`` and ``level_table`` say
    "columns", "first", "count",  # columns of the weight; rings of each that are wanted
    "inputs", "many",  # fp32 [many, columns]: of dot
    "target", "target_bytes",  # 16 bits [columns, rows of rings], or fp32 [many, rows of rings]
)  # fmt: skip
TOGETHER = (4, 1)
"""Rows of activations that are multiplied together."""
VECTORS = (4, 1)
"""Vectors of rows of the weight that are."""
COLUMNS = 16
"""Columns that are decoded before they are multiplied."""
LANES = 8
"""Fields that are cut out at once."""
WORDS, WIDE, LONG = vector(I64, LANES), vector(F32, 16), vector(I32, 16)


def write(module: Value, together: int, target: str) -> str:
    """Write a kernel.

    Args:
        module: where to.
        together: steps that are looked up at once, 1 or 2.
        target: what becomes of the weights, ``tile`` or ``dot``.

    Returns:
        The kernel's name.
    """
    name = f"rings_{together}_{target}"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    fields = function.scratch(8 * TALLEST)
    if target == "tile":
        _tile(function, given, together, fields)
    else:
        _dot(function, given, together, fields, function.scratch(2 * TALLEST * COLUMNS))
    function.at.ret_void()
    write_entries(module, name)
    return name


def _tile(function: Function, given: dict[str, Value], together: int, fields: Value) -> None:
    """Threads share the columns."""
    at = function.at
    _, thread, threads, _ = function.arguments
    start, stop = function.share(given["columns"], thread, threads)
    target, nbytes = function.pointer(given["target"]), function.times(given["ring_rows"], 2)
    with function.loop(start, stop) as column:
        to = function.offset(target, at.mul(column.index, given["target_bytes"]))
        with function.loop(number(0), given["count"]) as ring:
            place = function.offset(to, at.mul(ring.index, nbytes))
            which = at.add(given["first"], ring.index)
            _decode(function, given, together, (column.index, which), fields, place)


def _dot(
    function: Function, given: dict[str, Value], together: int, fields: Value, near: Value
) -> None:
    """Threads share the rings; each adds up columns in their order."""
    at = function.at
    _, thread, threads, _ = function.arguments
    start, stop = function.share(given["rings"], thread, threads)
    nbytes = function.times(given["ring_rows"], 2)
    with (
        function.loop(number(0), given["columns"], COLUMNS) as some,
        function.loop(start, stop) as ring,
    ):
        here = least(function, at.sub(given["columns"], some.index), number(COLUMNS))
        with function.loop(number(0), here) as column:
            to = function.offset(near, at.mul(column.index, nbytes))
            which = at.add(some.index, column.index)
            _decode(function, given, together, (which, ring.index), fields, to)
        row = at.mul(ring.index, given["ring_rows"])
        vectors = at.sdiv(given["ring_rows"], number(16))
        for size, part in function.taken(vectors, VECTORS):
            source = function.offset(near, function.times(part.index, 32))
            begin = at.add(row, function.times(part.index, 16))
            for many, each in function.taken(given["many"], TOGETHER):
                span = (some.index, here, nbytes)
                _add_up(function, given, span, (each.index, many), (begin, size), source)


def _add_up(
    function: Function,
    given: dict[str, Value],
    span: tuple[Value, Value, Value],
    rows: tuple[Value, int],
    vectors: tuple[Value, int],
    source: Value,
) -> None:
    """Add some columns to some rows of the result, for some rows of activations."""
    at = function.at
    (first, here, nbytes), (row, many), (begin, size) = span, rows, vectors
    start = function.times(begin, 4)
    inputs, targets = [], []
    for m in range(many):
        which = at.add(row, number(m))
        moved = at.add(at.mul(which, given["columns"]), first)
        inputs.append(function.offset(function.pointer(given["inputs"]), function.times(moved, 4)))
        line = function.offset(
            function.pointer(given["target"]), at.mul(which, given["target_bytes"])
        )
        targets.append(function.offset(line, start))
    sums = [function.load(WIDE, to, number(64 * i)) for to in targets for i in range(size)]
    with function.loop(number(0), here, carried=sums) as column:
        place = function.offset(source, at.mul(column.index, nbytes))
        values = [
            at.sitofp(at.sext(function.load(vector(I16, 16), place, number(32 * i)), LONG), WIDE)
            for i in range(size)
        ]
        added = []
        for m in range(many):
            value = function.load(F32, inputs[m], function.times(column.index, 4))
            factor = function.splat(value, 16)
            for i in range(size):
                so_far = column.values[m * size + i]
                added.append(function.multiply_add(values[i], factor, so_far))
        column.values = added
    for m, to in enumerate(targets):
        for i in range(size):
            function.store(column.values[m * size + i], to, number(64 * i))


def _decode(
    function: Function,
    given: dict[str, Value],
    together: int,
    ring: tuple[Value, Value],
    fields: Value,
    to: Value,
) -> None:
    """Levels of a column's ring, 16 bits each.

    All fields are cut out before any is looked up: what was written last is read with delay.
    """
    at = function.at
    column, which = ring
    tile = at.add(at.mul(column, given["rings"]), which)
    bit = at.mul(tile, given["ring_bits"])
    late = at.icmp_signed(">=", tile, given["late_from"])
    codes = function.pointer(at.select(late, given["late"], given["codes"]))
    phase = at.and_(bit, number(7))
    source = function.offset(codes, at.lshr(bit, number(3)))
    names = ("shifts", "masks", "bases")
    shifts, masks, bases = (function.pointer(given[name]) for name in names)
    mask, base = function.load(WORDS, masks), function.load(WORDS, bases)

    def cut(words: list[Value], place: Value, shift: Value) -> None:
        found = at.and_(at.lshr(_spread(function, words), shift), mask)
        function.store(at.add(found, base), fields, place, align=64)

    per_turn = LANES * together // STEPS
    head = _head(function, given, codes, bit)
    for turn in range(len(head) // per_turn):
        place = number(64 * turn)
        words = head[turn * per_turn : (turn + 1) * per_turn]
        cut(words, place, function.load(WORDS, shifts, place))
    moved = function.splat(phase, LANES)
    turns = at.sdiv(given["ring_rows"], number(LANES * together))
    starts = function.pointer(given["starts"])
    with function.loop(number(len(head) // per_turn), turns) as part:
        words = []
        for i in range(per_turn):
            word = at.add(function.times(part.index, per_turn), number(i))
            offset = function.load(I64, starts, function.times(word, 8))
            words.append(function.load(I64, source, offset))
        place = function.times(part.index, 64)
        cut(words, place, at.add(function.load(WORDS, shifts, place), moved))
    kind = I16 if together == 1 else I32
    table = function.pointer(given["table"])
    with function.loop(number(0), turns) as part:
        place = function.times(part.index, 64)
        target = function.offset(to, function.times(part.index, 2 * LANES * together))
        for i in range(LANES):
            field = function.load(I64, fields, at.add(place, number(8 * i)))
            entry = at.load(at.gep(table, [field], source_etype=kind), typ=kind, align=2)
            function.store(entry, target, number(2 * together * i))


def _spread(function: Function, words: list[Value]) -> Value:
    """One word in all places, or two in half of them each."""
    spread = [function.splat(word, LANES) for word in words]
    if len(spread) == 1:
        return spread[0]
    halves = ir.Constant(vector(I1, LANES), [1] * (LANES // 2) + [0] * (LANES // 2))
    return function.at.select(halves, *spread)


def _head(function: Function, given: dict[str, Value], codes: Value, bit: Value) -> list[Value]:
    """The words of the first 16 steps, whose windows reach back to the end of the ring."""
    at = function.at
    source = function.offset(codes, at.lshr(bit, number(3)))
    phase = at.and_(bit, number(7))
    low, high = (function.load(I64, source, number(place)) for place in (0, 8))
    low = function.call("llvm.fshr.i64", I64, [high, low, phase])
    high = at.lshr(high, phase)
    end = at.add(bit, at.sub(given["ring_bits"], number(OLDEST)))
    last = at.zext(function.load(I32, codes, at.lshr(end, number(3))), I64)
    last = at.and_(at.lshr(last, at.and_(end, number(7))), number((1 << OLDEST) - 1))
    high = function.call("llvm.fshl.i64", I64, [high, low, number(OLDEST)])
    low = at.or_(at.shl(low, number(OLDEST)), last)
    assert ROWS == 2 * STEPS, "a ring has at least two words"
    return [low, function.call("llvm.fshr.i64", I64, [high, low, given["rate"]])]
