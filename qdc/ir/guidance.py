"""The annotation of how much the predictions hang on what a layer gives out at each token."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from qdc.ir.annotation import Annotation
from qdc.ir.types import TensorRef

if TYPE_CHECKING:
    from qdc.ir.graph import Node


class Guidance(Annotation):
    """What every token of the calibration counts in the statistics of a layer's stage."""

    tag: ClassVar[str] = "guidance"
    tensor: TensorRef
    """``f32[samples, length]``: not negative, mean 1 over the tokens that are data."""
    states: str = Field(pattern=r"^[0-9a-f]{64}$")
    """SHA-256 of the token ids that it is of, ``i64[samples, length]``."""
    effective: float = Field(gt=0, allow_inf_nan=False)
    """Tokens of equal weight that would scatter a mean as much: (sum w)^2 / sum w^2."""

    def text(self) -> str:
        """``128 samples of 256 tokens   as good as 9,310 equal tokens``."""
        samples, length = self.tensor.shape
        return f"{samples} samples of {length} tokens   as good as {self.effective:,.0f} equal ones"

    def problems(self, node: "Node") -> Iterator[str]:
        """It has a row a sample."""
        if len(self.tensor.shape) != 2:
            yield f"guidance {self.tensor} is no table of samples and tokens"
