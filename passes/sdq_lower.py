"""Sample each rotated row more often, and code it by a sigma-delta loop.

Source: SDQ-LLM (arXiv 2510.03275). A block of 128 columns is rotated by random signs and a Hadamard
transform, its spectrum padded with zeros, its row mean taken off; a first-order loop turns the
longer row into codes of -1, 0, +1 (or -1, +1) times one scale. The way back cuts the spectrum off
and rotates back. How long a row is ``sdq-allocate`` says. Published are the diagonal
compensation and the loop alone. Ours: ``sweeps``, which move one code at a time to where the
block's loss wants it, and ``rounds``, which refit scale and mean in that metric (what later
columns cannot compensate), in the same stored form.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
                 @oversampling  ternary   160 codes for 128 columns   scale 0.9 x quantile 0.9 ...
    after        @sdq   ternary   160 codes for 128 columns   2 bits   output error 1.2e-01
"""

from collections.abc import Mapping
from typing import ClassVar

from qdc.format.sigmadelta import SigmaDeltaCode
from qdc.numerics.hadamard import SEEDS, random_seed
from qdc.numerics.sigma_delta import Coded
from qdc.passes.sdq_allocate import Oversampling
from qdc.passkit import (
    BLOCK,
    CompensatedLowering,
    Factor,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Preset,
    Tensor,
    Tensors,
    Unit,
    Work,
    block_metric,
    quantize_blocks,
)


class Sdq(Lowered):
    """A layer as sigma-delta codes of its rotated and resampled rows."""

    tag: ClassVar[str] = "sdq"
    codec: SigmaDeltaCode


class SdqLower(CompensatedLowering):
    """Sample each rotated row more often, and code it by a sigma-delta loop."""

    name: ClassVar[str] = "sdq-lower"
    rotates: ClassVar[bool] = True
    requires: ClassVar[Kinds] = (Factor, Oversampling)
    provides: ClassVar[Kinds] = (Sdq,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "sdq": Preset(
            "sdq-allocate{budget=rounded search=true},"
            "stages(calibrate-mcs,sensitivity,sdq-lower{compensation=diag}),pack",
            1.98,
            "arXiv 2510.03275",
        ),
        "sdq-binary": Preset(
            "sdq-allocate{ratio=1.75 levels=binary budget=rounded search=true},"
            "stages(calibrate-mcs,sensitivity,sdq-lower{compensation=diag}),pack",
            1.75,
            "arXiv 2510.03275",
        ),
        "sdq-shared": Preset(
            "sdq-allocate{scope=layer sd-scale=0.95 p-scale=0.85},"
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "sdq-lower{asymmetry=1 sweeps=2 rounds=4}),pack",
            1.98,
            "arXiv 2510.03275, our loop",
        ),
    }

    sweeps: int = Field(
        default=0, ge=0, le=100, description="sweeps over the codes, before each refit and last"
    )
    rounds: int = Field(
        default=0, ge=0, le=100, description="refits of scale and mean, each with sweeps anew"
    )
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="which rotations are drawn")

    def forecast_codec(self, unit: Forecast, node: Node) -> SigmaDeltaCode | None:
        """By the allocated ratio: none where that is not known."""
        note = unit.graph.get(node.name, Oversampling)
        return None if note is None else self.codec(node, note)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """Codes of a block in fp32 a few times, each read by the loop and the sweeps."""
        note = unit.graph.get(node.name, Oversampling)
        length = BLOCK if note is None else note.length
        codes = node.rows * node.columns * length / BLOCK
        turns = self.sweeps * (1 + self.rounds)
        nbytes, work = self.compensation_effort(unit, node)
        # What a sweep changes at one position moves the slope at all others of its block.
        elements = codes * (30 + 20 * self.rounds + 2 * turns * length)
        return nbytes + 8 * 5 * node.rows * length, work + Work(elements=elements)

    def codec(self, node: Node, note: Oversampling) -> SigmaDeltaCode:
        """The format of one layer."""
        return SigmaDeltaCode(
            rows=node.rows, columns=node.columns, length=note.length, levels=note.levels
        )

    def lower(self, unit: Unit, node: Node) -> tuple[Sdq, Tensors]:
        """Code the blocks of a layer left to right."""
        note = unit.graph.require(node.name, Oversampling)
        weight, upper = self.problem(unit, node)
        codec = self.codec(node, note)
        # Layers that read one value share its rotation, so that an engine can apply it once.
        seed = random_seed(self.seed, "inputs", node.inputs[0])
        blocks = codec.blocks(seed, weight.device)
        found: list[Coded] = []

        def quantize(index: int, block: Tensor) -> Tensor:
            part, code = codec.column_blocks[index], blocks[index]
            coded = code.fit(block, note.shape)
            if self.sweeps or self.rounds:
                metric = block_metric(upper[part, part]).full
                coded = code.refine(block, coded, metric, self.sweeps, self.rounds)
            found.append(coded)
            return code.dense(coded)

        slices = codec.column_blocks
        term = self.drift_term(unit, node, upper, slices)
        quantize_blocks(weight, upper, slices, self.compensation, quantize, term)
        return Sdq(codec=codec), SigmaDeltaCode.working(found, seed)
