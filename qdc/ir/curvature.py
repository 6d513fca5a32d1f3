"""The annotation of how the loss bends with what a layer gives out."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation
from qdc.ir.types import TensorRef, shape_text

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class OutputCurvature(Annotation):
    """The second moment of the derivatives of the end loss by a layer's outputs."""

    tag: ClassVar[str] = "curvature"
    tensor: TensorRef
    """``f32[rows, rows]``: sum over all tokens of g g^T, a prediction; nats^2 by output^2."""
    positions: int = Field(gt=0)
    """Predictions whose loss was taken."""
    size: float = Field(ge=0, allow_inf_nan=False)
    """Mean of the diagonal."""

    def text(self) -> str:
        """``f32[64,64]   9,310 predictions   0.0012 for each output``."""
        shape = shape_text(self.tensor.dtype, self.tensor.shape)
        return f"{shape}   {self.positions:,} predictions   {self.size:.2g} for each output"

    def problems(self, node: "Node") -> Iterator[str]:
        """It is square, one row an output."""
        if self.tensor.shape != (node.rows, node.rows):
            yield f"curvature {self.tensor} does not fit {node.rows} outputs"
