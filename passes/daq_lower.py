"""Fit each block by binary components and carry its error over to the blocks that follow.

Source: Quant-dLLM, arXiv 2510.03274, Data-aware Any-order Quantizer (DAQ), in the released code's
form (``quant-dllm.md`` 2.3-2.6): greedy start, joint cyclic refits of all scales with outliers
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

from qdc.codec import Lowered
from qdc.errors import InvalidCheckpoint
from qdc.ir.annotations import Factor, Moment, Orders
from qdc.ir.graph import Node
from qdc.multibinary import MultiBinary
from qdc.numerics.blocks import BLOCK, block_slices
from qdc.numerics.error import relative_output_error
from qdc.numerics.feedback import quantize_blocks
from qdc.numerics.importance import importance, outlier_weight
from qdc.numerics.multibinary import Components, dense, fit
from qdc.passbase import Kinds, Pass
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


class DaqLower(Pass):
    """Fit each block by binary components and carry its error over to the blocks that follow."""

    name: ClassVar[str] = "daq-lower"
    requires: ClassVar[Kinds] = (Moment, Factor, Orders)
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

    def run(self, unit: Unit) -> None:
        """Lower one layer after the other; they share the factor of their stage."""
        failed: dict[str, str] = {}
        for node in unit.layers():
            try:
                note = self.lower(unit, node)
            except OverflowError as error:
                failed[f"%{node.name}"] = str(error)
                continue
            unit.annotate(node, note)
            unit.remark("passed", node, error=note.error, outliers=note.outliers)
        if failed:
            raise InvalidCheckpoint(
                f"weights do not fit fp16 scales: {next(iter(failed.values()))}",
                where=tuple(failed),
                help="scale the weights of the checkpoint below 65504",
            )

    def lower(self, unit: Unit, node: Node) -> Daq:
        """Quantize the blocks of a layer left to right. Raises ``OverflowError``."""
        factor = unit.graph.require(node.name, Factor)
        orders = unit.graph.require(node.name, Orders)
        upper, original = unit.get(factor.tensor), unit.weight(node)
        dead = torch.tensor(factor.dead, dtype=torch.int64, device=original.device)
        weight = original.index_fill(1, dead, 0)
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

        result = quantize_blocks(weight, upper, slices, self.compensation, quantize)
        tensors = MultiBinary.working(blocks, BLOCK)
        moment = unit.graph.require(node.name, Moment)
        return Daq(
            codec=MultiBinary(
                rows=node.rows, columns=node.columns, block=BLOCK, orders=orders.blocks
            ),
            tensors=tuple(unit.put(f"{node.name}:{s}", t) for s, t in tensors.items()),
            suffixes=tuple(tensors),
            error=relative_output_error(original, result, unit.get(moment.tensor)),
            outliers=int(torch.stack(flagged).sum()) / weight.numel(),
            sweeps=max(swept),
        )
