"""Annotations of how the loss bends: with a layer's outputs, or with rows of the vocabulary."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation
from qdc.ir.types import TensorRef, shape_text

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class Curvature(Annotation):
    """What errors cost that come together, to second order."""

    each: ClassVar[str]
    """What a row of it is of."""
    tensor: TensorRef
    """f32, square."""
    positions: int = Field(gt=0)
    """Predictions whose loss was taken."""
    size: float = Field(ge=0, allow_inf_nan=False)
    """Mean of the diagonal."""

    @staticmethod
    def side(node: "Node") -> int:
        """How many rows it has on a node."""
        raise NotImplementedError

    def text(self) -> str:
        """``f32[64,64]   9,310 predictions   0.0012 for each output``."""
        shape = shape_text(self.tensor.dtype, self.tensor.shape)
        return f"{shape}   {self.positions:,} predictions   {self.size:.2g} for each {self.each}"

    def problems(self, node: "Node") -> Iterator[str]:
        """It is square, and of this node."""
        side = self.side(node)
        if self.tensor.shape != (side, side):
            yield f"curvature {self.tensor} does not fit {side} {self.each}s"


class OutputCurvature(Curvature):
    """The second moment of the derivatives of the end loss by a layer's outputs.

    Its tensor is ``f32[rows, rows]``: sum over all tokens of g g^T, a prediction; nats^2 by
    output^2.
    """

    tag: ClassVar[str] = "curvature"
    each: ClassVar[str] = "output"

    @staticmethod
    def side(node: "Node") -> int:
        """One row an output."""
        return node.rows


class RowCurvature(Curvature):
    """What errors of a row's columns cost together, summed over the rows of embedding or head.

    Its tensor is ``f32[columns, columns]``: nats a prediction by weight^2, doubled, if rows have
    errors of one kind that are independent of each other.
    """

    tag: ClassVar[str] = "row-curvature"
    on: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    each: ClassVar[str] = "column"

    @staticmethod
    def side(node: "Node") -> int:
        """One row a column."""
        return node.columns
