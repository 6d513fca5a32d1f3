"""Products with codes of 8 bits, by whole numbers: the kernel for AVX-512.

Inputs are rounded to whole numbers of 16 bits, as many steps as the largest of a *piece* of up to
1,024 columns allows; products with codes are added up in 32 bits, exactly, and scaled once a piece.
"""

from llvmlite import ir

from .emitter import (
    BODY,
    F16,
    F32,
    I8,
    I16,
    I32,
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
    "inputs", "input_bytes", "count", "chunk",  # fp32 [count, columns]; rows of a pass
    "pieces", "width", "groups", "per_group",  # pieces of a row, their columns; grids, their pieces
    "bits", "row_bytes", "rows",  # u8 [rows, row_bytes]
    "scales", "places", "bias",  # fp16 [groups, padded] twice, fp32 [rows]
    "rounded", "steps", "sums",  # i16 [chunk, columns]; fp32 [chunk, pieces], [chunk, groups]
    "result", "padded",  # fp32 [count, padded]
)  # fmt: skip
WIDEST, NARROWEST = 1024, 32
"""Columns of a piece: 1024 / 16 * 255 * 32767 stays below 2^31."""
LARGEST = 32766.0
ROWS = 4
"""Rows of the weight that are multiplied together."""
TOGETHER = (4, 1)
"""Rows of activations that are."""
WORD, WIDE, LONG = vector(I16, 32), vector(F32, 16), vector(I32, 16)


def piece_width(group: int) -> int | None:
    """Columns of a piece: the widest that groups consist of; None if the kernel has none."""
    widths = (WIDEST >> i for i in range(6))
    return next((width for width in widths if group % width == 0), None)


def write(module: Value, place: str, fused: bool) -> str:
    """Write the kernel.

    Args:
        module: where to.
        place: how grids are placed: by a minimum (``float``), or by a code (``packed``).
        fused: whether the processor multiplies and adds pairs of 16 bits with one instruction.

    Returns:
        The kernel's name.
    """
    name = f"octets_{place}"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    _, thread, threads, barrier = function.arguments
    at = function.at
    from_piece, to_piece = function.share(given["groups"], thread, threads)
    tiles = at.sdiv(at.add(given["rows"], number(ROWS - 1)), number(ROWS))
    from_tile, to_tile = function.share(tiles, thread, threads)
    with function.loop(number(0), given["count"], given["chunk"]) as turn:
        here = least(function, at.sub(given["count"], turn.index), given["chunk"])
        with function.loop(from_piece, to_piece) as group, function.loop(number(0), here) as row:
            _round(function, given, group.index, at.add(turn.index, row.index), row.index)
        wait(function, barrier)
        with function.loop(from_tile, to_tile) as tile:
            for many, row in function.taken(here, TOGETHER):
                _multiply(function, given, (place, fused), tile.index, row.index, turn.index, many)
        wait(function, barrier)
    at.ret_void()
    write_entries(module, name)
    return name


def _round(
    function: Function, given: dict[str, Value], group: Value, which: Value, row: Value
) -> None:
    """The inputs of a group, of one row of activations, to whole numbers; and their sum."""
    at = function.at
    width, per = given["width"], given["per_group"]
    columns = at.mul(at.mul(given["pieces"], width), number(2))
    first = at.mul(group, per)
    zero = filled(WIDE, 0.0)
    with function.loop(first, at.add(first, per), carried=[zero]) as piece:
        start = at.mul(piece.index, width)
        source = function.offset(
            function.offset(function.pointer(given["inputs"]), at.mul(which, given["input_bytes"])),
            function.times(start, 4),
        )
        target = function.offset(
            function.offset(function.pointer(given["rounded"]), at.mul(row, columns)),
            function.times(start, 2),
        )
        with function.loop(number(0), width, 16, carried=[zero, *piece.values]) as part:
            value = function.load(WIDE, source, function.times(part.index, 4))
            size = function.call("llvm.fabs.v16f32", WIDE, [value])
            # A NaN stays one: the comparison is false for it.
            smaller = at.fcmp_ordered("<=", size, part.values[0])
            part.values = [at.select(smaller, part.values[0], size), at.fadd(part.values[1], value)]
        largest = function.largest(part.values[0])
        positive = at.fcmp_ordered(">", largest, ir.Constant(F32, 0.0))
        steps = at.select(
            positive, at.fdiv(ir.Constant(F32, LARGEST), largest), ir.Constant(F32, 0.0)
        )
        step = at.fdiv(largest, ir.Constant(F32, LARGEST))
        place = at.add(at.mul(row, given["pieces"]), piece.index)
        function.store(step, function.pointer(given["steps"]), function.times(place, 4))
        many = function.splat(steps, 16)
        with function.loop(number(0), width, 16) as turn:
            value = function.load(WIDE, source, function.times(turn.index, 4))
            function.store(function.whole(value, many), target, function.times(turn.index, 2))
        piece.values = part.values[1:]
    place = at.add(at.mul(row, given["groups"]), group)
    total = function.sum(piece.values[0])
    function.store(total, function.pointer(given["sums"]), function.times(place, 4))


def _multiply(
    function: Function,
    given: dict[str, Value],
    kind: tuple[str, bool],
    tile: Value,
    row: Value,
    first: Value,
    many: int,
) -> None:
    """Four rows of the weight with some rows of activations."""
    at = function.at
    place, fused = kind
    last = at.sub(given["rows"], number(1))
    rows = [
        least(function, at.add(function.times(tile, ROWS), number(i)), last) for i in range(ROWS)
    ]
    bits = function.pointer(given["bits"])
    sources = [function.offset(bits, at.mul(r, given["row_bytes"])) for r in rows]
    columns = at.mul(at.mul(given["pieces"], given["width"]), number(2))
    rounded = function.pointer(given["rounded"])
    inputs = [
        function.offset(rounded, at.mul(at.add(row, number(m)), columns)) for m in range(many)
    ]
    pairs = [(m, i) for m in range(many) for i in range(ROWS)]
    none, zero = filled(WIDE, 0.0), filled(LONG, 0)
    ends = [ir.Constant(F32, 0.0) for _ in pairs]
    with function.loop(
        number(0), given["groups"], carried=[*[none for _ in pairs], *ends]
    ) as group:
        begin = at.mul(group.index, given["per_group"])
        there = [function.times(at.add(at.mul(group.index, given["padded"]), r), 2) for r in rows]
        scales = [_half(function, given["scales"], offset) for offset in there]
        places = [_half(function, given["places"], offset) for offset in there]
        stop = at.add(begin, given["per_group"])
        with function.loop(begin, stop, carried=group.values[: len(pairs)]) as piece:
            start = at.mul(piece.index, given["width"])
            end = at.add(start, given["width"])
            with function.loop(start, end, NARROWEST, carried=[zero for _ in pairs]) as part:
                codes = [
                    at.zext(function.load(vector(I8, 32), source, part.index), WORD)
                    for source in sources
                ]
                place_ = function.times(part.index, 2)
                values = [function.load(WORD, each, place_) for each in inputs]
                part.values = [
                    add_pairs(function, sum_, values[m], codes[i], fused)
                    for sum_, (m, i) in zip(part.values, pairs, strict=True)
                ]
            made = []
            for so_far, sum_, (m, i) in zip(piece.values, part.values, pairs, strict=True):
                step = _float(
                    function, given["steps"],
                    at.add(at.mul(at.add(row, number(m)), given["pieces"]), piece.index),
                )  # fmt: skip
                factor = function.splat(at.fmul(scales[i], step), 16)
                made.append(function.multiply_add(at.sitofp(sum_, WIDE), factor, so_far))
            piece.values = made
        sums = [
            _float(
                function, given["sums"],
                at.add(at.mul(at.add(row, number(m)), given["groups"]), group.index),
            )
            for m in range(many)
        ]  # fmt: skip
        added = []
        for so_far, (m, i) in zip(group.values[len(pairs) :], pairs, strict=True):
            shift = places[i] if place == "float" else at.fneg(at.fmul(places[i], scales[i]))
            added.append(at.fadd(so_far, at.fmul(shift, sums[m])))
        group.values = [*piece.values, *added]
    bias = function.pointer(given["bias"])
    result = function.pointer(given["result"])
    for k, (m, i) in enumerate(pairs):
        total = at.fadd(function.sum(group.values[k]), group.values[len(pairs) + k])
        total = at.fadd(total, function.load(F32, bias, function.times(rows[i], 4)))
        which = at.add(first, at.add(row, number(m)))
        target = at.add(at.mul(which, given["padded"]), rows[i])
        function.store(total, result, function.times(target, 4))


def add_pairs(function: Function, total: Value, left: Value, right: Value, fused: bool) -> Value:
    """Add products of 32 whole numbers of 16 bits to 16 sums, those of neighbours to one."""
    if fused:
        return function.call("llvm.x86.avx512.vpdpwssd.512", LONG, [total, left, right])
    pairs = function.call("llvm.x86.avx512.pmaddw.d.512", LONG, [left, right])
    return function.at.add(total, pairs)


def _half(function: Function, base: Value, offset: Value) -> Value:
    return function.at.fpext(function.load(F16, function.pointer(base), offset), F32)


def _float(function: Function, base: Value, place: Value) -> Value:
    return function.load(F32, function.pointer(base), function.times(place, 4))
