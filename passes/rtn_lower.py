"""Round every weight to the nearest level of a uniform grid: the simplest lowering.

Source: the common asymmetric min-max grid, one scale and one minimum for each row and group;
``search=clip`` narrows it where that gains more than the clipped weights lose (the grid search of
GPTQ's code). It
reads no statistics, so ``rtn-lower,pack`` compiles without calibration; with a moment at hand
(``stages(calibrate-mcs,rtn-lower),pack``) it also notes the output error.

    before   %h0.q = linear %x   w f16[64,512]
    after        @rtn  4 groups of 128   2 bits   output error 2.0e-01
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from qdc.format.codec import Lowered, Tensors
from qdc.format.uniformgrid import READS, UniformGrid, require_clip
from qdc.ir.graph import Node
from qdc.numerics.blocks import block_slices
from qdc.numerics.uniform import NORM, Search, Zero, fit_uniform
from qdc.passkit.lowering import Lowering
from qdc.pipeline.passbase import Kinds
from qdc.streaming.forecast import Forecast
from qdc.streaming.unit import Unit
from qdc.streaming.work import Work


class Rtn(Lowered):
    """A layer as codes on uniform grids."""

    tag: ClassVar[str] = "rtn"
    codec: UniformGrid

    def text(self) -> str:
        """``4 groups of 128   2 bits   output error 2.0e-01``."""
        return f"{self.codec.text()}{self.error_text()}"


class RtnLower(Lowering):
    """Round every weight to the nearest level of a uniform grid."""

    name: ClassVar[str] = "rtn-lower"
    provides: ClassVar[Kinds] = (Rtn,)

    bits: Literal[1, 2, 4, 8] = Field(default=2, description="bits of a code")
    group: int = Field(
        default=128, ge=8, le=1 << 16, multiple_of=8, description="columns of a grid"
    )
    search: Search = Field(
        default="minmax", description="grid from minimum to maximum, or the best narrower one"
    )
    norm: float = Field(
        default=NORM, gt=0, le=8, description="exponent of the error that clip minimises"
    )
    zero: Zero = Field(
        default="float", description="store a group's minimum in fp16, or the code of 0"
    )

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "RtnLower":
        require_clip(self.search, self.norm)
        return self

    def foresee(self, unit: Forecast, node: Node) -> UniformGrid:
        """The grid that the options give."""
        return self.codec(node)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Codes beside the weight, each number read for the grid and rounded."""
        work = Work(elements=READS[self.search] * node.rows * node.columns)
        return unit.weight(node) + 2 * self.codec(node).working_bytes, work

    def codec(self, node: Node) -> UniformGrid:
        """The grid of one layer."""
        return UniformGrid(
            rows=node.rows, columns=node.columns, group=self.group, bits=self.bits, zero=self.zero
        )

    def lower(self, unit: Unit, node: Node) -> tuple[Rtn, Tensors]:
        """Fit the grid of every row and group, then round."""
        weight = unit.weight(node)
        codec = self.codec(node)
        grids = [
            fit_uniform(weight[:, part], self.bits, self.search, self.zero, self.norm)
            for part in block_slices(node.columns, self.group)
        ]
        return Rtn(codec=codec), UniformGrid.working(grids, self.group, self.zero)
