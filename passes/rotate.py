"""Rotate what layers read: outliers are spread over all columns, and few bits lose less.

Inputs x become x Q and weights W become W Q, with Q = diag(signs) H / sqrt(size): random signs, and
a Hadamard transform of the largest power of two that divides the columns. As Q is orthogonal, what
a layer computes stays as it is, until its weight or its input is rounded. All later passes read
rotated weights and rotated statistics. The layers of a stage share their rotation, which a seed of
the stage's value names; the artifact stores that seed and no more, and a runtime rotates the input
of each layer before it multiplies. Source: QuaRot (arXiv 2404.00456), SpinQuant (arXiv 2405.16406).

    before   %h0.q = linear %x   w f16[64,512]
    after        @rotation  seed 1804289383
"""

from collections.abc import Sequence
from typing import ClassVar

from qdc.ir.activations import InputCodes, Rotation
from qdc.numerics.hadamard import SEEDS, random_seed, transform_size
from qdc.passkit import (
    CrossMoment,
    Factor,
    Field,
    Forecast,
    InvalidPipeline,
    Kinds,
    LayerGraph,
    Lowered,
    Moment,
    Pass,
    Unit,
    UnsupportedModel,
    Work,
)


class Rotate(Pass):
    """Rotate what layers read by random signs and Hadamard transforms."""

    name: ClassVar[str] = "rotate"
    provides: ClassVar[Kinds] = (Rotation,)
    forbids: ClassVar[Kinds] = (Moment, CrossMoment, Factor, Lowered, InputCodes)

    seed: int = Field(default=0, ge=0, lt=SEEDS, description="which rotations are drawn")

    def check(self, graph: LayerGraph) -> None:
        """Refuse layers with an odd number of columns, which no transform mixes."""
        odd = [node.name for node in graph.layers() if transform_size(node.columns) < 2]
        if odd:
            raise UnsupportedModel(
                "an odd number of columns has no Hadamard transform",
                where=[f"%{name}" for name in odd],
                help="leave rotate out",
            )

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse quantizers that rotate by themselves: twice costs twice, and gains nothing."""
        names = [step.name for step in later if step.rotates]
        if names:
            raise InvalidPipeline(
                f"{' and '.join(names)} turns layers by rotations of its own",
                help="leave rotate out, or lower by another pass: daq-lower, gptq-lower",
            )

    def run(self, unit: Unit) -> None:
        """Draw a rotation for each stage."""
        for stage, layers in unit.layers_by_stage():
            note = Rotation(seed=random_seed(self.seed, "inputs", stage.value))
            for node in layers:
                unit.annotate(node, note)

    def forecast(self, unit: Forecast) -> None:
        """Nothing is held; later passes rotate a weight whenever they read it."""
        for stage, layers in unit.layers_by_stage():
            for node in layers:
                steps = transform_size(node.columns).bit_length()
                unit.work(2 * unit.weight(node), Work(elements=node.rows * node.columns * steps))
                seed = random_seed(self.seed, "inputs", stage.value)
                unit.annotate(node, Rotation(seed=seed))
