"""What lowerings to uniform grids share: the options of the grid, and the format they give."""

from typing import Literal

from pydantic import Field, model_validator

from qdc.format.uniformgrid import UniformGrid
from qdc.ir.graph import Node
from qdc.numerics.uniform import NORM, Search, Zero
from qdc.passkit.lowering import Lowering
from qdc.streaming.forecast import Forecast

READS = {"minmax": 10, "clip": 400}
"""About how often a search for a grid reads or writes each weight, for ``qdc plan``."""


class UniformLowering(Lowering):
    """A pass that turns weights into codes on uniform grids; ``lower`` says how they are chosen."""

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
    def _norm_is_read(self) -> "UniformLowering":
        if self.search != "clip" and self.norm != NORM:
            raise ValueError(f"search={self.search} does not read norm, which is for clip")
        return self

    def codec(self, node: Node) -> UniformGrid:
        """The grid of one layer, as the options give it."""
        return UniformGrid(
            rows=node.rows, columns=node.columns, group=self.group, bits=self.bits, zero=self.zero
        )

    def forecast_codec(self, unit: Forecast, node: Node) -> UniformGrid:
        """What a layer will be stored as; known from the options alone."""
        return self.codec(node)

    @property
    def reads(self) -> int:
        """About how often the search for the grids reads or writes each weight."""
        return READS[self.search]
