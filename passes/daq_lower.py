"""Fit each block by binary components and carry its error over to the blocks that follow.

Source: Quant-dLLM, arXiv 2510.03274, Data-aware Any-order Quantizer (DAQ), in the released code's
form (github.com/ZTA2785/Quant-dLLM): greedy start, joint cyclic refits of all scales with outliers
weighted, joint search over the signs. Scales are rounded to fp16 before the error is taken, so
what later blocks and layers see is what is stored. Compensation between blocks is the exact
triangular one; ``diag`` is the released code's approximation.

    before   %h0.q = linear %x   w f16[64,512]
                 @orders  2 1 3 2   mean 2
    after        @daq     4 blocks   output error 1.3e-02   outliers 2.2%   15 sweeps
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from qdc.codec import Lowered, Tensors
from qdc.ir.annotations import Factor, Orders
from qdc.ir.graph import Node
from qdc.lowering import Lowering
from qdc.multibinary import MultiBinary
from qdc.numerics.blocks import BLOCK, block_slices
from qdc.numerics.feedback import quantize_blocks
from qdc.numerics.importance import importance, outlier_weight
from qdc.numerics.multibinary import Components, dense, fit
from qdc.passbase import Kinds
from qdc.pipeline.unit import Unit


class Daq(Lowered):
    """A layer as planes of signs with row and column scales."""

    tag: ClassVar[str] = "daq"
    codec: MultiBinary
    outliers: float = Field(ge=0, le=1)
    """Share of the weights that were flagged as outliers."""
    sweeps: int = Field(ge=0)
    """Most sweeps that a block took."""

    def text(self) -> str:
        """``4 blocks   output error 1.3e-02   outliers 2.2%   15 sweeps``."""
        return (
            f"{len(self.codec.orders)} blocks{self.error_text()}   "
            f"outliers {self.outliers:.1%}   {self.sweeps} sweeps"
        )


class DaqLower(Lowering):
    """Fit each block by binary components and carry its error over to the blocks that follow."""

    name: ClassVar[str] = "daq-lower"
    requires: ClassVar[Kinds] = (Factor, Orders)
    provides: ClassVar[Kinds] = (Daq,)

    sweeps: int = Field(default=15, ge=0, le=1000, description="rounds of refit and sign search")
    tolerance: float = Field(
        default=1e-6, ge=0, description="stop when a sweep gains less than this share; 0 never"
    )
    sigma: float = Field(default=2.0, gt=0, description="deviations of importance of an outlier")
    outlier_weight: float = Field(
        default=3.0, gt=0, description="least-squares weight of an outlier; 1 turns it off"
    )
    compensation: Literal["exact", "diag", "none"] = Field(
        default="exact", description="how a block's error moves to later blocks"
    )

    def lower(self, unit: Unit, node: Node) -> tuple[Daq, Tensors]:
        """Quantize the blocks of a layer left to right."""
        factor = unit.graph.require(node.name, Factor)
        orders = unit.graph.require(node.name, Orders)
        upper = unit.get(factor.tensor)
        dead = torch.tensor(factor.dead, dtype=torch.int64, device=upper.device)
        weight = unit.weight(node).index_fill(1, dead, 0)
        slices = block_slices(node.columns)
        blocks: list[Components] = []
        flagged: list[Tensor] = []
        swept: list[int] = []

        def quantize(index: int, block: Tensor) -> Tensor:
            part = slices[index]
            emphasis = outlier_weight(
                importance(block, upper[part, part]), self.sigma, self.outlier_weight
            )
            fitted, losses = fit(block, orders.blocks[index], emphasis, self.sweeps, self.tolerance)
            blocks.append(fitted)
            flagged.append((emphasis != 1).sum())
            swept.append(len(losses) - 1)
            return dense(fitted)

        quantize_blocks(weight, upper, slices, self.compensation, quantize)
        codec = MultiBinary(rows=node.rows, columns=node.columns, block=BLOCK, orders=orders.blocks)
        share = int(torch.stack(flagged).sum()) / weight.numel()
        note = Daq(codec=codec, outliers=share, sweeps=max(swept))
        return note, MultiBinary.working(blocks, BLOCK)
