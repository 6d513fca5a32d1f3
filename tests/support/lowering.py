"""daq-lower alone, on layers that read one value."""

from torch import Tensor

from qdc.ir.verify import verify
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.streaming.unit import Unit
from tests.support.units import make_unit, put_statistics


def lower(
    weights: dict[str, Tensor], moment: Tensor, orders: tuple[int, ...], **options: object
) -> Unit:
    """The unit after the pass ran with these options."""
    unit = make_unit(DaqLower.model_validate(options), weights)
    put_statistics(unit, moment, orders)
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="daq-lower")
    return unit


def result(unit: Unit, name: str = "q") -> Tensor:
    """What a layer's weight became, ``f32[rows, columns]``."""
    note = unit.graph.require(name, Daq)
    return note.codec.dense(note.working(unit.tensors))


def squares(error: Tensor) -> float:
    """Sum of squares."""
    return float(error.double().square().sum())
