"""Rings of trellis codes written out, or multiplied in fp32: the kernels for every processor.

The rings of a few columns are decoded to memory that is near, as small writes to far memory wait
for each other; ``tile`` copies them from there, columns of the weight one after the other, and
``dot`` multiplies them with a few rows of activations, exactly but for the rounding of sums.
"""

from .emitter import (
    BODY,
    F32,
    I8,
    I16,
    I32,
    TEAM,
    Function,
    Value,
    least,
    number,
    vector,
    write_entries,
)
from .ringlayout import ROWS, TALLEST, Fields
from .ringreading import OPERANDS, decode

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
        decode(function, given, fields, (some.index, here), which, near)
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
        decode(function, given, fields, (some.index, here), ring.index, near)
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
