"""How far a kernel may be off where rotations mix its errors: what chance explains.

Behind a rotation every output has a share of all errors of its block. The sum of their magnitudes
would allow more than the output is large; but they have signs that have nothing to do with each
other, so that their sum is of the size of the root of the sum of their squares.
"""

import math

from torch import Tensor

from qdc.format.codec import Tensors
from qdc.format.trelliscode import TrellisCode
from qdc.numerics.hadamard import RandomHadamard, transform_size, walsh_hadamard

DEVIATIONS = 5
"""How many roots of the sum of squares are allowed, each error taken to be as large as it can be:
its own root mean square is 0.58 of that, so that nothing comes near by chance."""
FP32 = 2.0**-24
"""Unit roundoff of fp32."""


class RotatedSpread:
    """The squares that errors of a layer W = Q_r P Q_c add up from, Q orthogonal."""

    def __init__(self, codec: TrellisCode, working: Tensors) -> None:
        """Decode the points of a layer; it holds two fp64 matrices from then on."""
        inputs = int(working["seeds"][0])
        points = codec.points(working["codes"]).double() * float(working["scale"])
        self.rotation = RandomHadamard.of(codec.columns, inputs, points.device)
        self.block = transform_size(codec.rows)
        mixed = walsh_hadamard(points.T, self.block).square() / self.block
        """``f64[columns, rows]``: of Q_r P, through which errors of inputs come."""
        blocks = points.square().view(-1, self.block, codec.columns).mean(1)
        """``f64[blocks, columns]``: of P, whose own errors Q_r spreads over its block."""
        self.energy = mixed + blocks.repeat_interleave(self.block, dim=0).T
        self.columns = codec.columns

    def allowed(self, x: Tensor, unit: float, step: float) -> Tensor:
        """How far outputs may be off.

        Rotated inputs and levels are rounded to the dtype, or products and scaled levels; sums of
        ``columns`` products, and of both transforms, are rounded to fp32.

        Args:
            x: ``f64[..., columns]``.
            unit: unit roundoff of the dtype.
            step: its smallest number, the least error of an input.

        Returns:
            ``f64[..., rows]``.
        """
        turned = self.rotation.forward(x).square() + (step / unit) ** 2
        spread = (turned @ self.energy).sqrt()
        sums = FP32 * (math.sqrt(self.columns) + 2 * math.log2(self.columns * self.block) + 2)
        return DEVIATIONS * (unit + sums) * spread
