"""Words of 32 rows side by side: planes are stored row by row, and looked up 32 rows at a time."""

from llvmlite import ir

from .emitter import I16, Function, Value, filled, number, vector
from .tables import WORD


def transpose(
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
