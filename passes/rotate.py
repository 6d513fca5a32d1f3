"""Rotate what layers read: outliers are spread over all columns, and few bits lose less.

Inputs x become x Q and weights W become W Q, with Q = diag(signs) H / sqrt(size): random signs, and
a Hadamard transform of the largest power of two that divides the columns. As Q is orthogonal, what
a layer computes stays as it is, until its weight or its input is rounded. All later passes read
rotated weights and rotated statistics. The layers of a stage share their rotation, which a seed of
the stage's value names; the artifact stores that seed and no more, and a runtime rotates the input
of each layer before it multiplies. Source: QuaRot (arXiv 2404.00456), SpinQuant (arXiv 2405.16406).

Layers with an odd number of columns have no such transform and stay as they are; the summary of a
compile says how many.

Where an attention stands alone between two linears, each head's values can be rotated instead
(``fold=heads``): the value projection gives them rotated, by the rows of its weight, attention
mixes them, and the linear behind it reads them so. That is folded into weights and costs nothing at
run time; it turns the columns of a head, not all of them. Everywhere else gains of norms and gated
products stand between what a layer reads and what gave it.

    before   %h0.q = linear %x   w f16[64,512]
    after        @rotation  seed 1804289383
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

from qdc.ir.activations import InputCodes, OfActivations, RotatedHeads, Rotation
from qdc.ir.attention import ATTENTION, Mixing, mixing
from qdc.numerics.hadamard import random_seed, transform_size
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
    Node,
    Pass,
    Stage,
    Unit,
    UnsupportedModel,
    Work,
)


class Rotate(Pass):
    """Rotate what layers read by random signs and Hadamard transforms."""

    name: ClassVar[str] = "rotate"
    annotates: ClassVar[Kinds] = (Rotation, RotatedHeads)
    reads_all: ClassVar[bool] = False
    forbids: ClassVar[Kinds] = (Rotation, Moment, CrossMoment, Factor, Lowered, InputCodes)

    seed: int = Field(default=0, ge=0, lt=1 << 62, description="which rotations are drawn")
    fold: Literal["none", "heads"] = Field(
        default="none", description="between values and outputs of attention: by heads, in weights"
    )

    def check(self, graph: LayerGraph) -> None:
        """Refuse heads where there are none to fold."""
        if self.fold == "heads" and not self.folded(graph):
            raise UnsupportedModel(
                "no attention of the model stands alone between two linears without bias",
                help="leave fold out: rotations are computed then",
            )

    def check_later(self, later: Sequence[Pass]) -> None:
        """Refuse a second rotation, and quantizers that rotate by themselves: it gains nothing."""
        if any(isinstance(step, Rotate) for step in later):
            raise InvalidPipeline("rotate stands in the pipeline twice", help="leave one out")
        names = [step.name for step in later if step.rotates]
        if names:
            raise InvalidPipeline(
                f"{' and '.join(names)} turns layers by rotations of its own",
                help="leave rotate out, or lower by another pass: daq-lower, gptq-lower",
            )

    def run(self, unit: Unit) -> None:
        """Draw a rotation for each stage."""
        for stage, layers in unit.layers_by_stage():
            for node in layers:
                notes = list(self.notes(unit.graph, stage, node))
                for name, note in notes:
                    unit.annotate(unit.graph[name], note)
                if not notes:
                    unit.remark("missed", node, columns=node.columns)

    def notes(
        self, graph: LayerGraph, stage: Stage, node: Node
    ) -> Iterator[tuple[str, OfActivations]]:
        """What is to be written for a layer, and for its partner across an attention."""
        found = self.folded(graph).get(node.name)
        turned = found is None or node.name == found.value
        if turned and transform_size(node.columns) > 1:
            yield node.name, Rotation(seed=random_seed(self.seed, "inputs", stage.value))
        if found is not None:
            # Both at once: neither may be lowered or computed with while the other one waits.
            seed = random_seed(self.seed, "heads", found.value)
            yield found.value, RotatedHeads(seed=seed, width=found.width)
            yield found.output, Rotation(seed=seed, head=found.width)

    def folded(self, graph: LayerGraph) -> dict[str, Mixing]:
        """The pairs of linears that share a rotation of heads, under both names."""
        if self.fold == "none":
            return {}
        pairs = (mixing(graph, node) for node in graph if node.op == ATTENTION)
        found = [pair for pair in pairs if pair is not None and transform_size(pair.width) > 1]
        return {name: pair for pair in found for name in (pair.value, pair.output)}

    def forecast(self, unit: Forecast) -> None:
        """Nothing is held; later passes rotate a weight whenever they read it."""
        for stage, layers in unit.layers_by_stage():
            for node in layers:
                steps = transform_size(node.columns).bit_length()
                unit.work(2 * unit.weight(node), Work(elements=node.rows * node.columns * steps))
                for name, note in self.notes(unit.graph, stage, node):
                    unit.annotate(unit.graph[name], note)
