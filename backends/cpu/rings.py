"""Rings of trellis codes decoded: the kernels for every processor, one for each rate and window.

Fields are cut out of 64-bit words and looked up one by one, for processors gather from a table no
faster than that; so shifts and places are constants. Levels are whole numbers of 16 bits, or bf16,
and two of them are looked up at once where their table fits a cache. The rings of a few columns
are decoded to memory that is near, as small writes to far memory wait for each other; ``tile``
copies them from there, columns of the weight one after the other, and ``dot`` multiplies them with
a few rows of activations, in fp32, exactly but for the rounding of sums.
"""

from llvmlite import ir

from .emitter import (
    BODY,
    F32,
    I8,
    I16,
    I32,
    I64,
    TEAM,
    Function,
    Value,
    least,
    number,
    vector,
    write_entries,
)
from .ringlayout import OLDEST, ROWS, STEPS, TALLEST, Fields

OPERANDS = (
    "codes", "late", "late_from",  # bits; those of the last rings, less the bytes before; a number
    "ring_bits", "rings", "ring_rows",  # of a ring; rings of a column; rows of a ring
    "table",  # as ``level_table`` says
    "columns", "first", "count",  # columns of the weight; rings of each that are wanted
    "inputs", "many",  # fp32 [many, columns]: of dot
    "target", "target_bytes",  # 16 bits [columns, rows of rings], or fp32 [many, rows of rings]
)  # fmt: skip
TOGETHER = (4, 1)
"""Rows of activations that are multiplied together."""
COLUMNS = 16
"""Columns that are decoded before they are used."""
VECTORS = ROWS // 16
"""Vectors of rows of the weight that are multiplied together."""
WIDE, LONG, LINE = vector(F32, 16), vector(I32, 16), vector(I8, 64)


def write(module: Value, fields: Fields, target: str) -> str:
    """Write a kernel.

    Args:
        module: where to.
        fields: what is looked up.
        target: what becomes of the weights, ``tile`` or ``dot``.

    Returns:
        The kernel's name.
    """
    name = f"rings_{target}"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    near = function.scratch(2 * TALLEST * COLUMNS)
    _, thread, threads, _ = function.arguments
    shared = given["columns"] if target == "tile" else given["rings"]
    start, stop = function.share(shared, thread, threads)
    if target == "tile":
        _tile(function, given, fields, (start, stop), near)
    else:
        _dot(function, given, fields, (start, stop), near)
    function.at.ret_void()
    write_entries(module, name)
    return name


def _tile(
    function: Function,
    given: dict[str, Value],
    fields: Fields,
    share: tuple[Value, Value],
    near: Value,
) -> None:
    """Threads share the columns."""
    at = function.at
    nbytes = function.times(given["ring_rows"], 2)
    with (
        function.loop(*share, COLUMNS) as some,
        function.loop(number(0), given["count"]) as ring,
    ):
        here = least(function, at.sub(share[1], some.index), number(COLUMNS))
        which = at.add(given["first"], ring.index)
        _decode(function, given, fields, (some.index, here), which, near)
        moved = at.mul(ring.index, nbytes)
        with function.loop(number(0), here) as column:
            source = function.offset(near, at.mul(column.index, nbytes))
            line = at.mul(at.add(some.index, column.index), given["target_bytes"])
            to = function.offset(function.pointer(given["target"]), at.add(line, moved))
            with function.loop(number(0), nbytes, 64) as part:
                function.store(function.load(LINE, source, part.index), to, part.index)


def _dot(
    function: Function,
    given: dict[str, Value],
    fields: Fields,
    share: tuple[Value, Value],
    near: Value,
) -> None:
    """Threads share the rings; each adds up columns in their order."""
    at = function.at
    with (
        function.loop(number(0), given["columns"], COLUMNS) as some,
        function.loop(*share) as ring,
    ):
        here = least(function, at.sub(given["columns"], some.index), number(COLUMNS))
        _decode(function, given, fields, (some.index, here), ring.index, near)
        row = at.mul(ring.index, given["ring_rows"])
        with function.loop(number(0), given["ring_rows"], ROWS) as part:
            source = function.offset(near, function.times(part.index, 2))
            begin = at.add(row, part.index)
            for many, each in function.taken(given["many"], TOGETHER):
                _add_up(function, given, (some.index, here), (each.index, many), begin, source)


def _add_up(
    function: Function,
    given: dict[str, Value],
    span: tuple[Value, Value],
    rows: tuple[Value, int],
    begin: Value,
    source: Value,
) -> None:
    """Add some columns to 64 rows of the result, for some rows of activations."""
    at = function.at
    (first, here), (row, many) = span, rows
    nbytes, start = function.times(given["ring_rows"], 2), function.times(begin, 4)
    inputs, targets = [], []
    for m in range(many):
        which = at.add(row, number(m))
        moved = at.add(at.mul(which, given["columns"]), first)
        inputs.append(function.offset(function.pointer(given["inputs"]), function.times(moved, 4)))
        line = at.add(at.mul(which, given["target_bytes"]), start)
        targets.append(function.offset(function.pointer(given["target"]), line))
    places = [(to, number(64 * i)) for to in targets for i in range(VECTORS)]
    sums = [function.load(WIDE, *place) for place in places]
    with function.loop(number(0), here, carried=sums) as column:
        place = function.offset(source, at.mul(column.index, nbytes))
        values = [
            at.sitofp(at.sext(function.load(vector(I16, 16), place, number(32 * i)), LONG), WIDE)
            for i in range(VECTORS)
        ]
        added = []
        for m in range(many):
            value = function.load(F32, inputs[m], function.times(column.index, 4))
            factor = function.splat(value, 16)
            for i in range(VECTORS):
                so_far = column.values[m * VECTORS + i]
                added.append(function.multiply_add(values[i], factor, so_far))
        column.values = added
    for value, place in zip(column.values, places, strict=True):
        function.store(value, *place)


def _decode(
    function: Function,
    given: dict[str, Value],
    fields: Fields,
    columns: tuple[Value, Value],
    ring: Value,
    to: Value,
) -> None:
    """Levels of a ring of some columns, 16 bits each."""
    at = function.at
    first, here = columns
    with function.loop(number(0), here) as column:
        tile = at.add(at.mul(at.add(first, column.index), given["rings"]), ring)
        late = at.icmp_signed(">=", tile, given["late_from"])
        codes = function.pointer(at.select(late, given["late"], given["codes"]))
        bit = at.mul(tile, given["ring_bits"])
        source = function.offset(codes, at.lshr(bit, number(3)))
        phase = None if fields.aligned else at.and_(bit, number(7))
        line = function.offset(to, function.times(at.mul(column.index, given["ring_rows"]), 2))
        head = _head(function, given, fields, (source, phase))
        _look_up(function, given, fields, (source, phase), head, line)
        with function.loop(number(ROWS), given["ring_rows"], ROWS) as part:
            moved = at.lshr(function.times(part.index, fields.rate), number(6))
            ahead = function.offset(source, moved)
            place = function.offset(line, function.times(part.index, 2))
            _look_up(function, given, fields, (ahead, phase), [], place)


def _look_up(
    function: Function,
    given: dict[str, Value],
    fields: Fields,
    start: tuple[Value, Value | None],
    head: list[Value],
    to: Value,
) -> None:
    """Levels of 64 steps from a byte, maybe from a bit of it; ``head`` has the first words."""
    at = function.at
    source, phase = start
    table = function.pointer(given["table"])
    kind = ir.IntType(16 * fields.together)
    for place in range(ROWS // STEPS):
        begin = 0
        if place < len(head):
            word = head[place]
        else:
            byte, begin = divmod(place * fields.rate - OLDEST, 8)
            word = function.load(I64, source, number(byte))
            word = word if phase is None else at.lshr(word, phase)
        for which, (first, bits, base) in enumerate(fields.of_word):
            field = at.and_(at.lshr(word, number(begin + first)), number((1 << bits) - 1))
            entry = at.gep(table, [at.add(field, number(base))], source_etype=kind)
            step = place * STEPS + which * fields.together
            function.store(at.load(entry, typ=kind, align=2), to, number(2 * step))


def _head(
    function: Function, given: dict[str, Value], fields: Fields, start: tuple[Value, Value | None]
) -> list[Value]:
    """The words of the first 16 steps, whose windows reach back to the end of the ring."""
    at = function.at
    source, phase = start
    low, high = (function.load(I64, source, number(place)) for place in (0, 8))
    end = at.sub(given["ring_bits"], number(OLDEST))
    if phase is None:
        last = function.load(I16, source, at.lshr(end, number(3)))
        last = at.zext(last, I64)
    else:
        low = function.call("llvm.fshr.i64", I64, [high, low, phase])
        high = at.lshr(high, phase)
        end = at.add(end, phase)
        last = at.zext(function.load(I32, source, at.lshr(end, number(3))), I64)
        last = at.and_(at.lshr(last, at.and_(end, number(7))), number((1 << OLDEST) - 1))
    high = function.call("llvm.fshl.i64", I64, [high, low, number(OLDEST)])
    low = at.or_(at.shl(low, number(OLDEST)), last)
    return [low, function.call("llvm.fshr.i64", I64, [high, low, number(fields.rate)])]
