"""What allocation weighs: the cost of each block at each order, and what it does to the loss."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, model_validator

from qdc.ir.annotation import Annotation
from qdc.ir.annotations import Width
from qdc.numerics.orders import HIGHEST_ORDER, LOWEST_ORDER

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class Costs(Annotation):
    """Output error of each block at each order, once later blocks have compensated for it.

    Mean over tokens of the squared error, summed over outputs, in the damped metric.
    """

    tag: ClassVar[str] = "costs"
    blocks: tuple[tuple[float, ...], ...] = Field(min_length=1)
    """For each block its costs at orders 1, 2, ..."""
    widths: tuple[Width, ...] = Field(min_length=1)
    """Columns of each block."""
    energy: float = Field(ge=0, allow_inf_nan=False)
    """The same of all weights at zero: the output itself."""
    scale_bits: Literal[8, 16] = 16
    """Bits of a stored scale that the fits were rounded to."""

    @property
    def orders(self) -> int:
        """Highest order that was measured."""
        return len(self.blocks[0])

    @model_validator(mode="after")
    def _rectangular(self) -> "Costs":
        if {len(row) for row in self.blocks} - set(range(LOWEST_ORDER, HIGHEST_ORDER + 1)):
            raise ValueError(f"a block has costs at other orders than {LOWEST_ORDER}..")
        if len({len(row) for row in self.blocks}) != 1:
            raise ValueError("blocks have costs at different orders")
        return self

    def text(self) -> str:
        """``4 blocks   share of the output at orders 1..4: 2.1e-01 5e-02 1.3e-02 4.1e-03``."""
        share = [sum(column) / (self.energy or 1) for column in zip(*self.blocks, strict=True)]
        shares = " ".join(f"{part:.2g}" for part in share)
        return f"{len(self.blocks)} blocks   share of the output at orders 1..: {shares}"

    def problems(self, node: "Node") -> Iterator[str]:
        """Finite costs; the blocks tile the columns."""
        if sum(self.widths) != node.columns:
            yield f"block widths sum to {sum(self.widths)}, not to {node.columns} input columns"
        if len(self.widths) != len(self.blocks):
            yield f"{len(self.blocks)} blocks for {len(self.widths)} block widths"
        if not all(0 <= cost < float("inf") for row in self.blocks for cost in row):
            yield "a cost is negative or not finite"


class LossSensitivity(Annotation):
    """What quantizing this layer alone does to the model's predictions."""

    tag: ClassVar[str] = "loss"
    rise: float = Field(ge=0, allow_inf_nan=False)
    """Mean divergence (KL, in nats) of the predictions from the original's where they count."""
    error: float = Field(ge=0, allow_inf_nan=False)
    """The output error that did it, in the unit of ``Costs``."""
    positions: int = Field(gt=0)
    """Positions over which it is a mean: masked ones, or all of clean text."""

    @property
    def weight(self) -> float:
        """Nats for one unit of output error; 0 for a layer that nothing can go wrong with."""
        return self.rise / self.error if self.error else 0.0

    def text(self) -> str:
        """``0.0013 nats at 8,192 positions   0.021 for a unit of output error``."""
        return (
            f"{self.rise:.2g} nats at {self.positions:,} positions   "
            f"{self.weight:.2g} for a unit of output error"
        )
