"""The annotation of how the loss bends with a row of embedding or output head."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation
from qdc.ir.types import TensorRef, shape_text

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class RowCurvature(Annotation):
    """What errors of a row's columns cost together, summed over the rows."""

    tag: ClassVar[str] = "row-curvature"
    on: ClassVar[tuple[str, ...]] = ("linear", "embedding")
    tensor: TensorRef
    """``f32[columns, columns]``: nats a prediction by weight^2, were all rows off by one error."""
    positions: int = Field(gt=0)
    """Predictions whose loss was taken."""
    size: float = Field(ge=0, allow_inf_nan=False)
    """Mean of the diagonal."""

    def text(self) -> str:
        """``f32[64,64]   9,310 predictions   0.0012 for each column``."""
        shape = shape_text(self.tensor.dtype, self.tensor.shape)
        return f"{shape}   {self.positions:,} predictions   {self.size:.2g} for each column"

    def problems(self, node: "Node") -> Iterator[str]:
        """It is square, one row a column."""
        if self.tensor.shape != (node.columns, node.columns):
            yield f"curvature {self.tensor} does not fit {node.columns} columns"
