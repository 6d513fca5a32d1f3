"""Round every weight to the nearest level of a uniform grid: the simplest lowering.

Source: the common asymmetric min-max grid, one scale and one minimum for each row and group;
``search=clip`` narrows it where that gains more than the clipped weights lose (the grid search of
GPTQ's code). It reads no statistics, so ``rtn-lower,pack`` compiles without calibration; with a
moment at hand (``stages(calibrate-mcs,rtn-lower),pack``) it also notes the output error.

    before   %h0.q = linear %x   w f16[64,512]
    after        @rtn  4 groups of 128   2 bits   output error 2.0e-01
"""

from typing import ClassVar

from qdc.passkit import (
    Forecast,
    Kinds,
    Lowered,
    Node,
    Tensors,
    UniformGrid,
    UniformLowering,
    Unit,
    Work,
    block_slices,
    fit_uniform,
)


class Rtn(Lowered):
    """A layer as codes on uniform grids."""

    tag: ClassVar[str] = "rtn"
    codec: UniformGrid


class RtnLower(UniformLowering):
    """Round every weight to the nearest level of a uniform grid."""

    name: ClassVar[str] = "rtn-lower"
    provides: ClassVar[Kinds] = (Rtn,)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Codes beside the weight, each number read for the grid and rounded."""
        work = Work(elements=self.reads * node.rows * node.columns)
        return unit.weight(node) + 2 * self.codec(node).working_bytes, work

    def lower(self, unit: Unit, node: Node) -> tuple[Rtn, Tensors]:
        """Fit the grid of every row and group, then round."""
        weight = unit.weight(node)
        codec = self.codec(node)
        grids = [
            fit_uniform(weight[:, part], self.bits, self.search, self.zero, self.norm)
            for part in block_slices(node.columns, self.group)
        ]
        return Rtn(codec=codec), UniformGrid.working(grids, self.group, self.zero)
