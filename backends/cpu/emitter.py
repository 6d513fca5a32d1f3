"""Write functions in LLVM's language: loops over counted numbers, vectors, memory by byte offsets.

Every kernel has one argument, a pointer to its operands: 64-bit numbers and addresses, in an order
that both sides know. So one way of calling serves all, and no signature can disagree.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from llvmlite import binding, ir

Value = Any
"""A value of the language; the library has no types."""

VOID = ir.VoidType()
I1, I8, I16, I32, I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()
POINTER = ir.PointerType()
WIDE = ' nounwind "min-legal-vector-width"="512" "prefer-vector-width"="512"'


def number(value: int) -> Value:
    """A 64-bit constant."""
    return ir.Constant(I64, value)


def vector(kind: Value, count: int) -> Value:
    """The type of ``count`` numbers side by side."""
    return ir.VectorType(kind, count)


def filled(kind: Value, value: float) -> Value:
    """A constant vector of equal numbers."""
    return ir.Constant(kind, [value] * kind.count)


def new_module() -> Value:
    """An empty module for this processor."""
    made = ir.Module("qdc")
    made.triple = binding.get_default_triple()
    return made


def text_of(module: Value) -> str:
    """The module as LLVM reads it; vectors of 512 bits are used where the processor has them."""
    return str(module).replace(" nounwind", WIDE)


class Function:
    """A function that is being written."""

    def __init__(self, module: Value, name: str, arguments: Sequence[Value]) -> None:
        made = ir.Function(module, ir.FunctionType(VOID, arguments), name)
        made.attributes.add("nounwind")
        self.module, self.made = module, made
        self.at = ir.IRBuilder(made.append_basic_block("entry"))
        """Where instructions go; its methods are LLVM's instructions."""
        self.arguments: Sequence[Value] = made.args

    def operands(self, names: Sequence[str]) -> dict[str, Value]:
        """All operands, as 64-bit numbers, by name."""
        return {
            name: self.load(I64, self.arguments[0], number(8 * place), align=8)
            for place, name in enumerate(names)
        }

    def pointer(self, address: Value) -> Value:
        """An operand as an address."""
        return self.at.inttoptr(address, POINTER)

    def scratch(self, nbytes: int) -> Value:
        """Memory of this call, at the beginning of a cache line."""
        made = self.at.alloca(ir.ArrayType(I8, nbytes))
        made.align = 64
        made.type = POINTER
        return made

    def offset(self, base: Value, nbytes: Value) -> Value:
        """``base`` and so many bytes."""
        return self.at.gep(base, [nbytes], source_etype=I8)

    def load(self, kind: Value, base: Value, nbytes: Value | None = None, align: int = 1) -> Value:
        """Read from memory."""
        place = base if nbytes is None else self.offset(base, nbytes)
        return self.at.load(place, typ=kind, align=align)

    def store(self, value: Value, base: Value, nbytes: Value | None = None, align: int = 1) -> None:
        """Write to memory."""
        place = base if nbytes is None else self.offset(base, nbytes)
        self.at.store(value, place, align=align)

    def times(self, value: Value, factor: int) -> Value:
        """A number times a constant."""
        return self.at.mul(value, number(factor))

    def splat(self, value: Value, count: int) -> Value:
        """One number in all places."""
        kind = vector(value.type, count)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.at.insert_element(nothing, value, ir.Constant(I32, 0))
        return self.at.shuffle_vector(first, nothing, filled(vector(I32, count), 0))

    def shuffle(self, left: Value, right: Value, places: Sequence[int]) -> Value:
        """Choose among the numbers of two vectors."""
        chosen = ir.Constant(vector(I32, len(places)), list(places))
        return self.at.shuffle_vector(left, right, chosen)

    def call(self, name: str, result: Value, arguments: Sequence[Value]) -> Value:
        """Call a function of LLVM by its name."""
        known = self.module.globals.get(name)
        if known is None:
            kinds = [argument.type for argument in arguments]
            known = ir.Function(self.module, ir.FunctionType(result, kinds), name)
        return self.at.call(known, arguments)

    def multiply_add(self, left: Value, right: Value, added: Value) -> Value:
        """``left * right + added`` on 16 fp32 numbers, rounded once."""
        return self.call("llvm.fma.v16f32", left.type, [left, right, added])

    def whole(self, values: Value, steps: Value) -> Value:
        """``values * steps`` of 16 fp32 numbers to the nearest whole ones, of 16 bits.

        NaN, and what has no 16 bits, become 0. A conversion that saturates would do the numbers one
        by one.
        """
        at = self.at
        near = self.call("llvm.rint.v16f32", values.type, [at.fmul(values, steps)])
        size = self.call("llvm.fabs.v16f32", values.type, [near])
        small = at.fcmp_ordered("<=", size, filled(values.type, 32767.0))
        near = at.select(small, near, filled(values.type, 0.0))
        count = values.type.count
        return at.trunc(at.fptosi(near, vector(I32, count)), vector(I16, count))

    def sum(self, values: Value) -> Value:
        """The sum of 16 fp32 numbers, halves first: the same order on every processor."""
        count = values.type.count
        while count > 1:
            count //= 2
            low = self.shuffle(values, values, range(count))
            high = self.shuffle(values, values, range(count, 2 * count))
            values = self.at.fadd(low, high)
        return self.at.extract_element(values, ir.Constant(I32, 0))

    def largest(self, values: Value) -> Value:
        """The largest of 16 fp32 numbers that are 0 or more; NaN if one is."""
        at, count = self.at, values.type.count
        while count > 1:
            count //= 2
            low = self.shuffle(values, values, range(count))
            high = self.shuffle(values, values, range(count, 2 * count))
            keep = at.fcmp_unordered(">", low, high)
            values = at.select(keep, low, high)
            # Where the upper one alone is NaN, it goes through: NaN + x is NaN.
            odd = at.fcmp_unordered("uno", high, high)
            values = at.select(odd, high, values)
        return at.extract_element(values, ir.Constant(I32, 0))

    @contextmanager
    def loop(
        self, start: Value, stop: Value, step: Value = 1, carried: Sequence[Value] = ()
    ) -> Iterator["Loop"]:
        """Count from ``start`` to below ``stop``; values may be carried from turn to turn."""
        at = self.at
        before = at.block
        head, body, after = (at.append_basic_block(name) for name in ("head", "body", "after"))
        at.branch(head)
        at.position_at_end(head)
        index = at.phi(I64)
        index.add_incoming(start, before)
        held = [at.phi(value.type) for value in carried]
        for place, value in zip(held, carried, strict=True):
            place.add_incoming(value, before)
        at.cbranch(at.icmp_signed("<", index, stop), body, after)
        at.position_at_end(body)
        turn = Loop(index, held)
        yield turn
        following = at.add(index, number(step) if isinstance(step, int) else step)
        index.add_incoming(following, at.block)
        for place, value in zip(held, turn.values, strict=True):
            place.add_incoming(value, at.block)
        at.branch(head)
        at.position_at_end(after)
        turn.values = held

    def taken(self, count: Value, sizes: Sequence[int]) -> Iterator[tuple[int, "Loop"]]:
        """Loops over ``count`` things, so many together as the sizes say; the last of them is 1."""
        stop = number(0)
        for size in sizes:
            start, stop = stop, self.at.and_(count, number(-size))
            with self.loop(start, stop, size) as turn:
                yield size, turn

    def share(self, count: Value, thread: Value, threads: Value) -> tuple[Value, Value]:
        """The part of ``count`` things that is a thread's: first, and behind the last."""
        at = self.at
        first = at.sdiv(at.mul(count, thread), threads)
        last = at.sdiv(at.mul(count, at.add(thread, number(1))), threads)
        return first, last


class Loop:
    """A loop that is being written: what it counts, and what it carries.

    The body sets ``values`` to what the next turn gets; behind the loop they are those of its end.
    """

    def __init__(self, index: Value, values: Sequence[Value]) -> None:
        self.index, self.values = index, list(values)


TEAM = ("thread_number", "thread_count", "barrier")
"""The first operands of every kernel: functions of the runtime that its threads belong to."""
BODY = (POINTER, I64, I64, I64)
"""Arguments of what a kernel does: operands, a thread's number, their count, and the barrier."""


def wait(function: Function, barrier: Value) -> None:
    """Let all threads come this far."""
    kind = ir.FunctionType(VOID, []).as_pointer()
    function.at.call(function.at.inttoptr(barrier, kind), [])


def write_entries(module: Value, name: str) -> None:
    """Write how a kernel is entered: ``name_team`` by each thread of a team, ``name_alone``."""
    body = module.globals[name]
    team = Function(module, f"{name}_team", [POINTER])
    given = team.operands(TEAM)
    ask = ir.FunctionType(I32, []).as_pointer()
    thread, threads = (
        team.at.sext(team.at.call(team.at.inttoptr(given[which], ask), []), I64)
        for which in TEAM[:2]
    )
    team.at.call(body, [team.arguments[0], thread, threads, given["barrier"]])
    team.at.ret_void()
    nothing = module.globals.get("nothing")
    if nothing is None:
        empty = Function(module, "nothing", [])
        empty.at.ret_void()
        nothing = empty.made
    alone = Function(module, f"{name}_alone", [POINTER])
    barrier = alone.at.ptrtoint(nothing, I64)
    alone.at.call(body, [alone.arguments[0], number(0), number(1), barrier])
    alone.at.ret_void()


def least(function: Function, left: Value, right: Value) -> Value:
    """The smaller of two whole numbers."""
    return function.at.select(function.at.icmp_signed("<", left, right), left, right)
