"""Note how far a layer's rotated codes will be from right: its error at a distortion of one.

Source: LDLQ's error, as QuIP and QTIP (arXiv 2406.11235) derive it. Feedback brings the error of
each column down to its variance given the columns that are encoded after it; in rotated coordinates
weights are alike in all columns, so that the mean of these variances counts. A code's distortion
times this is the output error to expect.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor  f32[512,512]   damp 0.01
    after        @predicted  an error of 0.13 of the output at a distortion of 1

allocate-rates reads it. With ``outputs=guided`` errors of rows are handed on as well, and all
errors are in nats by guide's curvature, so that those of different layers compare as they are.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from qdc.ir.curvature import OutputCurvature
from qdc.numerics.hadamard import RandomHadamard, random_seed
from qdc.numerics.rotated import InputSpace
from qdc.numerics.tiling import LONGEST, Tiling, usual_height
from qdc.passkit import (
    Annotation,
    Factor,
    Field,
    Forecast,
    InvalidPipeline,
    Kinds,
    Lowered,
    Node,
    Pass,
    Unit,
    Work,
    block_slices,
    model_validator,
    residual_cost,
)
from qdc.passkit.outputs import (
    DAMP,
    OutputDamp,
    Outputs,
    curvature_needs,
    output_factor,
    output_factor_effort,
)
from qdc.passkit.rotation import rotation_bytes

SEED = 0
"""Of the rotation; one is as good as another."""
AGREED = ("output_damp", "height")
"""Options that a lowering with guided outputs is to have as well."""


class PredictedError(Annotation):
    """What a layer's error is proportional to, in rotated coordinates with feedback."""

    tag: ClassVar[str] = "predicted"
    error: float = Field(ge=0, allow_inf_nan=False)
    """Output error at a distortion of 1, in the unit of ``Costs``."""
    energy: float = Field(ge=0, allow_inf_nan=False)
    """The output itself in that unit."""
    guided: bool = False
    """Whether the unit is what the predictions lose, in nats, by the curvature of the outputs."""

    @model_serializer(mode="wrap")
    def _without_default(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave ``guided`` out where it says nothing, as dumps before it did."""
        data: dict[str, Any] = dump(self)
        return data if self.guided else {k: v for k, v in data.items() if k != "guided"}

    def text(self) -> str:
        """``an error of 0.13 of the output at a distortion of 1``, or nats in its place."""
        if self.guided:
            return f"{self.error:.2g} nats at a distortion of 1"
        share = self.error / self.energy if self.energy else 0.0
        return f"an error of {share:.2g} of the output at a distortion of 1"


class PredictError(Pass):
    """Note how far a layer's rotated codes will be from right: its error at a distortion of one."""

    name: ClassVar[str] = "predict-error"
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False
    requires: ClassVar[Kinds] = (Factor,)
    provides: ClassVar[Kinds] = (PredictedError,)

    outputs: Outputs = "alike"
    output_damp: OutputDamp = DAMP
    height: int | None = Field(
        default=None,
        ge=1,
        le=LONGEST,
        description="the lowering's, if outputs are guided; as there if not given",
    )

    @model_validator(mode="after")
    def _alike_reads_no_tiles(self) -> "PredictError":
        fields = type(self).model_fields
        for option in ("output_damp", "height") if self.outputs == "alike" else ():
            if getattr(self, option) != fields[option].default:
                given = option.replace("_", "-")
                raise ValueError(f"outputs=alike does not read {given}")
        return self

    def needs(self) -> Kinds:
        """The curvature of guide, where that is asked for."""
        return (*super().needs(), *curvature_needs(self.outputs))

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse an allocation that takes these errors for others, and tiles that are others."""
        guided = self.outputs == "guided"
        again = next((i for i, s in enumerate(later) if PredictedError in s.provides), len(later))
        for step in later[:again]:
            weights = getattr(step, "weights", None)
            if PredictedError in step.requires and (weights == "guided") != guided:
                wanted = "guided" if guided else "loss or energy"
                raise InvalidPipeline(
                    f"{step.name}{{weights={weights}}} cannot compare what {self.name} notes with "
                    f"outputs={self.outputs}",
                    help=f"write weights={wanted} to {step.name}, or "
                    f"outputs={'alike' if guided else 'guided'} to {self.name}",
                )
            lowers = any(issubclass(kind, Lowered) for kind in step.provides)
            for option in AGREED if lowers and getattr(step, "outputs", None) == "guided" else ():
                if guided and getattr(step, option, None) != getattr(self, option):
                    given = option.replace("_", "-")
                    raise InvalidPipeline(
                        f"{self.name} and {step.name} are not given the same {given}, so that what "
                        "is predicted are not the errors that are left",
                        help=f"write the same {given} to both, or to neither",
                    )

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
                if self.outputs == "guided":
                    spread = output_variance(unit, node, self.output_damp, self.height)
                    note = PredictedError(error=size * variance * spread / 2, energy=0, guided=True)
                else:
                    energy = residual_cost(weight, torch.zeros_like(weight), upper)
                    note = PredictedError(error=size * variance, energy=energy)
                unit.annotate(node, note)

        unit.share(unit.layers(), measure)

    def forecast(self, unit: Forecast) -> None:
        """A factor rotated in fp64, and one product with the inverse of the factor."""
        for node in unit.layers():
            weights, squares = node.rows * node.columns, node.columns**2
            exact = 4 * squares * node.columns + weights * node.columns
            nbytes = max(rotation_bytes(node.columns), 8 * (squares + 4 * weights))
            if self.outputs == "guided":
                more, factored = output_factor_effort(node)
                unit.work(more, factored)
            unit.work(nbytes + 2 * unit.weight(node), Work(exact=exact, elements=2 * weights))
            unit.annotate(node, PredictedError(error=0, energy=0))


def output_variance(unit: Unit, node: Node, damp: float, height: int | None) -> float:
    """Mean curvature of a rotated output given those of the tiles that are encoded after it."""
    if not unit.graph.require(node.name, OutputCurvature).size:
        return 0.0  # no prediction hangs on it
    rows = output_factor(unit, node, SEED, damp).double()
    total = 0.0
    most = height or usual_height(node.rows, guided=True)
    for part in block_slices(node.rows, Tiling.fitted(node.rows, most, 1).height):
        triangle = rows[part, part]
        identity = torch.eye(len(triangle), dtype=triangle.dtype, device=triangle.device)
        root = torch.linalg.solve_triangular(triangle, identity, upper=True)
        total += float(root.square().sum())
    return total / node.rows


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
