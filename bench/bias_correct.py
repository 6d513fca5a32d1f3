"""A trial pass: the expected residual of each layer as an output bias.

    qdc compile MODEL --plugin bench/bias_correct.py \\
        --passes 'stages(calibrate-mcs,sensitivity,abmp-allocate,daq-lower,bias-correct),pack' -o OUT

E[x] is known from calibration, so (W - Q) E[x] costs one fp16 a row and nothing at run time
(quant-dllm.md 7 no. 18). ``docs/quality.md`` says whether it pays.
"""

from typing import ClassVar

from qdc.calibration.options import CalibrationOptions
from qdc.codec import Lowered
from qdc.passbase import Kinds
from qdc.pipeline.unit import Unit


class BiasCorrect(CalibrationOptions):
    """Add the expected residual of each layer as an output bias."""

    name: ClassVar[str] = "bias-correct"
    requires: ClassVar[Kinds] = (Lowered,)

    def run(self, unit: Unit) -> None:
        """Average the inputs of each stage on the quantized stream."""
        stream = unit.stream(lambda: self.draw(unit).batches(self.batch))
        for stage, nodes in unit.layers_by_stage():
            stream.enter(stage)
            values = [value.flatten(0, -2).double() for value in stream.values(stage)]
            tokens = sum(len(value) for value in values)
            mean = sum(value.sum(0) for value in values) / tokens
            for node in nodes:
                lowered = unit.graph.require(node.name, Lowered)
                dense = lowered.codec.dense(lowered.working(unit.tensors)).to(unit.device)
                residual = (unit.weight(node) - dense).double()
                unit.tune(node, "bias", (residual @ mean).float())
