"""The annotation of what the quantized stream has lost at a stage."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation
from qdc.ir.types import TensorRef, shape_text

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class CrossMoment(Annotation):
    """How the input that a stage had in the original model goes with the one that it has now."""

    tag: ClassVar[str] = "cross-moment"
    scratch: ClassVar[bool] = True
    tensor: TensorRef
    """``f32[columns, columns]``: mean over all tokens of (x0 - x) x^T, x0 in the original model."""
    drift: float = Field(ge=0)
    """Mean of |x0 - x|^2 as a share of that of |x0|^2."""
    residual: TensorRef | None = None
    """``f32[rows, columns]``: mean of (h0 - h) x^T, where the layer's output is added to h, the
    residual stream; None for a layer whose output is not added to anything."""

    def text(self) -> str:
        """``f32[512,512]   drift 3.1e-02``."""
        added = "" if self.residual is None else "   with the residual stream's"
        return f"{shape_text(self.tensor.dtype, self.tensor.shape)}   drift {self.drift:.1e}{added}"

    def problems(self, node: "Node") -> Iterator[str]:
        """It is square, one row an input column."""
        if self.tensor.shape != (node.columns, node.columns):
            yield f"cross moment {self.tensor} does not fit {node.columns} input columns"
        if self.residual is not None and self.residual.shape != (node.rows, node.columns):
            yield f"residual {self.residual} does not fit {node.weight}"
