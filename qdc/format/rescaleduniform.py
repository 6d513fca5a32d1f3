"""Uniform grids whose scales and minima move and whose codes stay."""

from torch import Tensor

from qdc.format.rescaling import Dense, NamedScales
from qdc.numerics.integergrid import Scales, shortened


class RescaledUniform(NamedScales):
    """Scales and minima of all groups; packed zero points are integers and stay."""

    def __init__(self, dense: Dense, scales: Scales) -> None:
        """Take a format.

        Args:
            dense: of the codec.
            scales: what scales are rounded to, as the codec says.
        """
        super().__init__(dense, ("scale", "minimum"), ("scale",))
        self._kind: Scales = scales

    def rounded(self, suffix: str, numbers: Tensor) -> Tensor:
        """Scales as the codec's are, minima in fp16."""
        return (shortened(numbers, self._kind) if suffix == "scale" else numbers).half()
