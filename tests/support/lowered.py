"""One layer through one lowering of any kind."""

from torch import Tensor

from qdc.format.codec import Lowered
from qdc.ir.verify import verify
from qdc.numerics.error import relative_output_error
from qdc.passkit.lowering import Lowering
from tests.support.units import make_unit, put_statistics


def lowered(step: Lowering, weight: Tensor, moment: Tensor) -> tuple[Lowered, Tensor]:
    """The annotation, and the weight as it is stored, ``f32[rows, columns]``; packing is proven."""
    unit = make_unit(step, {"q": weight})
    put_statistics(unit, moment, (2,) * -(-weight.shape[1] // 128))
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after=step.name)
    note = unit.graph.require("q", Lowered)
    working = note.working(unit.tensors)
    note.codec.pack_exactly(working, "q")
    return note, note.codec.dense(working)


def error(step: Lowering, weight: Tensor, moment: Tensor) -> float:
    """Its output error as a share of the output."""
    return relative_output_error(weight, lowered(step, weight, moment)[1], moment)
