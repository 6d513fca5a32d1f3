"""Note how far a layer's rotated codes will be from right: its error at a distortion of one.

Source: LDLQ's error, as QuIP and QTIP (arXiv 2406.11235) derive it. Feedback brings the error of
each column down to its variance given the columns that are encoded after it; in rotated coordinates
weights are alike in all columns, so that the mean of these variances counts. A code's distortion
times this is the output error to expect.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor  f32[512,512]   damp 0.01
    after        @predicted  an error of 0.13 of the output at a distortion of 1

allocate-rates reads it.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from qdc.numerics.hadamard import RandomHadamard, random_seed
from qdc.numerics.rotated import InputSpace
from qdc.passkit import (
    Annotation,
    Factor,
    Field,
    Forecast,
    Kinds,
    Node,
    Pass,
    Unit,
    Work,
    residual_cost,
)
from qdc.passkit.rotation import rotation_bytes

SEED = 0
"""Of the rotation; one is as good as another."""


class PredictedError(Annotation):
    """What a layer's error is proportional to, in rotated coordinates with feedback."""

    tag: ClassVar[str] = "predicted"
    error: float = Field(ge=0, allow_inf_nan=False)
    """Output error at a distortion of 1, in the unit of ``Costs``."""
    energy: float = Field(ge=0, allow_inf_nan=False)
    """The output itself in that unit."""

    def text(self) -> str:
        """``an error of 0.13 of the output at a distortion of 1``."""
        share = self.error / self.energy if self.energy else 0.0
        return f"an error of {share:.2g} of the output at a distortion of 1"


class PredictError(Pass):
    """Note how far a layer's rotated codes will be from right: its error at a distortion of one."""

    name: ClassVar[str] = "predict-error"
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False
    requires: ClassVar[Kinds] = (Factor,)
    provides: ClassVar[Kinds] = (PredictedError,)

    def run(self, unit: Unit) -> None:
        """Annotate one layer after the other; those that read one value share the variances."""

        def measure(nodes: tuple[Node, ...]) -> None:
            value, variance = "", 0.0
            for node in nodes:
                factor = unit.graph.require(node.name, Factor)
                upper = unit.get(factor.tensor)
                if factor.tensor.name != value:
                    value, variance = factor.tensor.name, mean_variance(upper, node.inputs[0])
                dead = torch.tensor(factor.dead, dtype=torch.int64, device=upper.device)
                weight = unit.weight(node).index_fill(1, dead, 0)
                size = float(weight.square().sum(dtype=torch.float64))
                energy = residual_cost(weight, torch.zeros_like(weight), upper)
                unit.annotate(node, PredictedError(error=size * variance, energy=energy))

        unit.share(unit.layers(), measure)

    def forecast(self, unit: Forecast) -> None:
        """A factor rotated in fp64, and one product with the inverse of the factor."""
        for node in unit.layers():
            weights, squares = node.rows * node.columns, node.columns**2
            exact = 4 * squares * node.columns + weights * node.columns
            nbytes = max(rotation_bytes(node.columns), 8 * (squares + 4 * weights))
            unit.work(nbytes + 2 * unit.weight(node), Work(exact=exact, elements=2 * weights))
            unit.annotate(node, PredictedError(error=0, energy=0))


def mean_variance(upper: Tensor, value: str) -> float:
    """Mean variance of a rotated column given those that are encoded after it.

    Args:
        upper: f32[columns, columns], the factor, whose inverse moment is U^T U.
        value: what the layers read, which names the rotation.
    """
    turn = RandomHadamard.of(len(upper), random_seed(SEED, "inputs", value), upper.device)
    rotated = InputSpace(turn, None, padding=0, reverse=True).factor(upper)
    # A column's variance given the others is 1 over the square of its place on the diagonal.
    return float(rotated.diagonal().double().square().reciprocal().mean())
