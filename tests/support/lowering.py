"""One pass alone, daq-lower most of all, on layers that read one value."""

from torch import Tensor

from qdc.ir.curvature import OutputCurvature
from qdc.ir.verify import verify
from qdc.passes.daq_lower import Daq, DaqLower
from qdc.pipeline.passbase import Pass
from qdc.streaming.unit import Unit
from tests.support.units import annotate_all, make_unit, put_statistics


def lower(
    weights: dict[str, Tensor], moment: Tensor, orders: tuple[int, ...], **options: object
) -> Unit:
    """The unit after the pass ran with these options."""
    unit = make_unit(DaqLower.model_validate(options), weights)
    put_statistics(unit, moment, orders)
    unit.step.run(unit)
    verify(unit.graph, unit.tensors, after="daq-lower")
    return unit


def lower_by_curvature(
    step: Pass, weight: Tensor, curvature: Tensor, moment: Tensor, orders: tuple[int, ...]
) -> Unit:
    """The unit of one layer, ``q``, after a pass ran that may read the curvature of its outputs."""
    unit = make_unit(step, {"q": weight})
    put_statistics(unit, moment, orders)
    mean = float(curvature.diagonal().mean())
    note = OutputCurvature(tensor=unit.put("q:curvature", curvature), positions=9, size=mean)
    annotate_all(unit, note)
    step.run(unit)
    verify(unit.graph, unit.tensors, after=step.name)
    return unit


def result(unit: Unit, name: str = "q") -> Tensor:
    """What a layer's weight became, ``f32[rows, columns]``."""
    note = unit.graph.require(name, Daq)
    return note.codec.dense(note.working(unit.tensors))


def squares(error: Tensor) -> float:
    """Sum of squares."""
    return float(error.double().square().sum())
