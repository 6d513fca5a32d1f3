"""Sum two {0, 1} planes with a scale each for each row and group: dual binarization, untrained.

Source: DB-LLM (arXiv 2402.11960), its flexible dual binarization. A group starts at the grid of two
bits that the publication starts at: scales 2s and -s with s half of the largest weight, so levels
-s, 0, s and 2s. There the scales are then trained by distillation; here, without gradients, they
are fitted by least squares, codes and scales in turn (``iterations``; 0 leaves the grid as it is).
Ours: ``mirror``, which also starts from the scales -2s and s and keeps the better of each row, as
levels that reach farther on one side suit some rows and not others; feedback, sweeps and asymmetry.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @db  4 groups of 128   2 planes   output error 6.3e-02
"""

from collections.abc import Mapping
from typing import ClassVar

from qdc.format.bitplanes import BitPlanes
from qdc.numerics.planegrid import PlaneGrid
from qdc.numerics.planestart import fit_without_offset
from qdc.passkit import (
    BlockLowering,
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
    block_slices,
)

PLANES = 2


class Db(Lowered):
    """A layer as two planes of {0, 1} with a scale each."""

    tag: ClassVar[str] = "db"
    codec: BitPlanes


class DbLower(BlockLowering):
    """Sum two {0, 1} planes with a scale each for each row and group of columns."""

    name: ClassVar[str] = "db-lower"
    provides: ClassVar[Kinds] = (Db,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "fdb": Preset(
            "stages(calibrate-mcs,sensitivity,db-lower{compensation=none feedback=false}),pack",
            2,
            "arXiv 2402.11960, without training",
        ),
        "fdb-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "db-lower{rounds=5 asymmetry=1 mirror=true}),polish,pack",
            2,
            "arXiv 2402.11960, its format",
        ),
    }

    group: int = Field(
        default=128, ge=8, le=1 << 16, multiple_of=8, description="columns of a group"
    )
    iterations: int = Field(
        default=20, ge=0, le=1000, description="least-squares fits of the scales before feedback"
    )
    mirror: bool = Field(
        default=False, description="also start from scales of the other sign (ours)"
    )

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> BitPlanes:
        """The format of a layer, which ``qdc plan`` counts."""
        return BitPlanes(
            rows=node.rows, columns=node.columns, group=self.group, planes=PLANES, offset=False
        )

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop; small systems in fp64, those of the start without a metric."""
        weights, starts = node.rows * node.columns, 1 + self.mirror
        nbytes, work = self.loop_effort(unit, node, self.group)
        elements = weights * starts * self.iterations * (2**PLANES + PLANES**2)
        exact = 2 * PLANES * self.feedback * self.rounds * weights * self.group
        held = node.rows * self.group * 8 * (2 * PLANES + 4)
        return nbytes + weights + held, work + Work(elements=elements, exact=exact)

    def lower(self, unit: Unit, node: Node) -> tuple[Db, Tensors]:
        """Quantize the groups of a layer left to right."""
        slices = block_slices(node.columns, self.group)
        grids, dense = self.quantize(unit, node, slices, self.fit)
        working = BitPlanes.working(grids, dense, self.group)
        return Db(codec=self.forecast_codec(unit, node)), working

    def fit(self, index: int, block: Tensor, triangle: Tensor) -> tuple[PlaneGrid, Tensor]:
        """The levels of a group by least squares, and the group on them."""
        return fit_without_offset(block, PLANES, self.iterations, mirror=self.mirror)
