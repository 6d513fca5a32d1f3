"""Rings of trellis codes decoded to memory that is near: what all kernels of them begin with.

Fields are cut out of 64-bit words and looked up one by one, for processors gather from a table no
faster than that; so shifts and places are constants, and a kernel is for one rate and window.
Levels are whole numbers of 16 bits, or bf16, and two of them are looked up at once where their
table fits a cache.
"""

from llvmlite import ir

from .emitter import I16, I32, I64, Function, Value, number
from .ringlayout import OLDEST, ROWS, STEPS, Fields

OPERANDS = (
    "codes", "late", "late_from",  # bits; those of the last rings, less the bytes before; a number
    "ring_bits", "rings", "ring_rows",  # of a ring; rings of a column; rows of a ring
    "table",  # as ``level_table`` says
    "columns", "first", "count",  # columns of the weight; rings of each that are wanted
    "inputs", "many",  # of ``dot`` fp32 [many, columns], of ``whole`` i16 [pieces, many, columns]
    "target", "target_bytes",  # 16 bits [columns, rows of rings], or fp32 [many, rows of rings]
)  # fmt: skip


def decode(
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
