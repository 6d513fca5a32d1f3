"""Random rotations of activations: the kernels for every processor.

Sums are added in the order that ``qdc.numerics.hadamard`` defines, so the numbers are its own. Two
steps of the transform are taken at a time, so that memory is passed half as often.
"""

from llvmlite import ir

from .emitter import (
    BODY,
    F16,
    F32,
    TEAM,
    Function,
    Value,
    number,
    vector,
    write_entries,
)

OPERANDS = (
    "source", "source_bytes", "count", "width",  # fp32 [count, width]
    "twos", "twice",  # how often one and two steps are taken, beyond the first four
    "signs", "factor", "bias",  # fp16 [width], fp32 [1] and [width]; the last two: of outputs
    "target",  # fp32 [count, width]
)  # fmt: skip
LANES = 16
"""The least size of a transform."""
WIDE = vector(F32, LANES)


def write(module: Value, side: str) -> str:
    """Write a kernel.

    Args:
        module: where to.
        side: ``inputs``, whose signs come first, or ``outputs``, with a factor, and signs and a
            bias behind it.

    Returns:
        The kernel's name.
    """
    name = f"rotate_{side}"
    function = Function(module, name, BODY)
    given = function.operands((*TEAM, *OPERANDS))
    _, thread, threads, _ = function.arguments
    at = function.at
    start, stop = function.share(given["count"], thread, threads)
    signs = function.pointer(given["signs"])
    with function.loop(start, stop) as row:
        source = function.offset(
            function.pointer(given["source"]), at.mul(row.index, given["source_bytes"])
        )
        target = function.offset(
            function.pointer(given["target"]),
            function.times(at.mul(row.index, given["width"]), 4),
        )
        with function.loop(number(0), given["width"], LANES) as part:
            value = function.load(WIDE, source, function.times(part.index, 4))
            if side == "inputs":
                value = at.fmul(value, _signs(function, signs, part.index))
            function.store(_inside(function, value), target, function.times(part.index, 4))
        _between(function, given, target)
        if side == "outputs":
            _finish(function, given, target, signs)
    at.ret_void()
    write_entries(module, name)
    return name


def _signs(function: Function, signs: Value, column: Value) -> Value:
    half = function.load(vector(F16, LANES), signs, function.times(column, 2))
    return function.at.fpext(half, WIDE)


def _inside(function: Function, value: Value) -> Value:
    """The first four steps: sums and differences of numbers of one vector."""
    at = function.at
    for distance in (1, 2, 4, 8):
        other = function.shuffle(value, value, [lane ^ distance for lane in range(LANES)])
        sides = ir.Constant(WIDE, [-1.0 if lane & distance else 1.0 for lane in range(LANES)])
        value = at.fadd(other, at.fmul(value, sides))
    return value


def _between(function: Function, given: dict[str, Value], line: Value) -> None:
    """The steps of 16 columns and more: two at a time, then what is left."""
    at = function.at
    with function.loop(number(0), given["twice"]) as turn:
        step = at.shl(number(LANES), at.shl(turn.index, number(1)))
        _pass(function, given, line, step, 4)
    last = at.shl(number(LANES), at.shl(given["twice"], number(1)))
    with function.loop(number(0), given["twos"]):
        _pass(function, given, line, last, 2)


def _pass(
    function: Function, given: dict[str, Value], line: Value, step: Value, members: int
) -> None:
    at = function.at
    with (
        function.loop(number(0), given["width"], function.times(step, members)) as block,
        function.loop(number(0), step, LANES) as part,
    ):
        first = at.add(block.index, part.index)
        places = [
            function.times(at.add(first, function.times(step, member)), 4)
            for member in range(members)
        ]
        values = [function.load(WIDE, line, place) for place in places]
        distance = 1
        while distance < members:
            made = list(values)
            for member in range(members):
                if not member & distance:
                    left, right = values[member], values[member + distance]
                    made[member] = at.fadd(left, right)
                    made[member + distance] = at.fsub(left, right)
            values, distance = made, 2 * distance
        for value, place in zip(values, places, strict=True):
            function.store(value, line, place)


def _finish(function: Function, given: dict[str, Value], line: Value, signs: Value) -> None:
    at = function.at
    factor = function.splat(function.load(F32, function.pointer(given["factor"])), LANES)
    bias = function.pointer(given["bias"])
    with function.loop(number(0), given["width"], LANES) as part:
        place = function.times(part.index, 4)
        value = at.fmul(function.load(WIDE, line, place), factor)
        value = at.fmul(value, _signs(function, signs, part.index))
        function.store(at.fadd(value, function.load(WIDE, bias, place)), line, place)
