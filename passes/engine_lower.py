"""Choose codes on the grids that serving engines load, scales refitted with feedback.

Engines that serve quantized models (vLLM, SGLang, all that read ``compressed-tensors``) know one
form below 8 bits: scale * (code - zero), a scale for each row and group, and an integer zero point
or none. Here codes are chosen column by column, each seeing the errors of the others; the scale of
a group is solved for, with every zero point, in the metric of what later columns cannot compensate
(Schur complement); ``asymmetry`` takes back what the layers before have lost. Scales are numbers of
bf16 as well as of fp16, since engines turn them to the dtype of the model, and zero points one of
the two codes next to the middle, which is a symmetric grid for whoever allows a negative scale:
``qdc export --format compressed-tensors`` writes it so. A layer whose columns are no whole groups
is stored all the same, and a remark says that no engine loads it. Source of the loop:
related-systems.md A4, A5.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.1
    after        @engine    4 groups of 128   2 bits   output error 4.0e-02
"""

from typing import ClassVar, Literal

from torch import Tensor

from qdc.numerics.integergrid import STEPS, IntegerGrid, Scales, Zeros, zero_codes
from qdc.passkit import (
    BlockLowering,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Preset,
    Tensors,
    UniformGrid,
    Unit,
    Work,
    block_metric,
    block_slices,
)

READS = 4
"""About how often a scale that is tried reads or writes each weight, for ``qdc plan``."""
LOOP = "stages(calibrate-cross,sensitivity{damp=0.1},engine-lower{asymmetry=1%s}),polish,pack"


class Engine(Lowered):
    """A layer as codes on grids with integer zero points."""

    tag: ClassVar[str] = "engine"
    codec: UniformGrid


class EngineLower(BlockLowering):
    """Choose codes on the grids that serving engines load, scales refitted with feedback."""

    name: ClassVar[str] = "engine-lower"
    provides: ClassVar[Kinds] = (Engine,)
    presets: ClassVar = {
        "engine": Preset(LOOP % "", takes="engine-lower"),
        "engine-4bit": Preset(LOOP % " bits=4"),
    }

    bits: Literal[2, 4, 8] = Field(default=2, description="bits of a code")
    group: Literal[32, 64, 128] = Field(default=128, description="columns of a grid")
    zeros: Zeros = Field(
        default="central", description="codes that may stand for 0: the two in the middle, or any"
    )
    scales: Scales = Field(
        default="bf16", description="numbers that a scale may be: of bf16 and fp16, or of fp16"
    )

    def codec(self, node: Node) -> UniformGrid:
        """The codec of one layer."""
        return UniformGrid(
            rows=node.rows,
            columns=node.columns,
            group=self.group,
            bits=self.bits,
            zero="packed",
            scales=self.scales,
        )

    def forecast_codec(self, unit: Forecast, node: Node) -> UniformGrid:
        """What a layer will be stored as; known from the options."""
        return self.codec(node)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop, and the search for the first grids."""
        nbytes, work = self.loop_effort(unit, node, self.group)
        tried = STEPS * len(zero_codes(self.bits, self.zeros))
        search = Work(elements=READS * tried * node.rows * node.columns)
        return nbytes + 2 * self.codec(node).working_bytes, work + search

    def lower(self, unit: Unit, node: Node) -> tuple[Engine, Tensors]:
        """Quantize the groups of a layer left to right."""
        slices = block_slices(node.columns, self.group)
        if node.columns % self.group:
            reason = (
                f"{node.columns} columns are no whole groups of {self.group}: no engine loads it"
            )
            unit.remark("missed", node, reason=reason)

        def fit(index: int, block: Tensor, triangle: Tensor) -> tuple[IntegerGrid, Tensor]:
            weights = block_metric(triangle).full.diagonal()
            grid = IntegerGrid.fit(block, self.bits, weights, self.zeros, self.scales)
            return grid, grid.round(block)

        grids, dense = self.quantize(unit, node, slices, fit)
        groups = [grid.encode(dense[:, part]) for grid, part in zip(grids, slices, strict=True)]
        return Engine(codec=self.codec(node)), UniformGrid.working(groups, self.group, "packed")
