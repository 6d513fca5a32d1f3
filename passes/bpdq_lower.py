"""Sum {0, 1} planes with coefficients and an offset of each row and group, refitted in the metric.

Source: BPDQ (arXiv 2602.04163). A group starts at the highest planes of its weights in 8 bits; its
coefficients are least squares, whitened by the group's part of the factor. Then, in rounds: the
columns choose among the 2^K values one after the other, seeing each other's errors, and the
coefficients are fitted again. The best round is kept, and its error, after the last refit, moves on
to later groups exactly. Ours: ``start=alternating``, which fits the levels to the weights before
any column is chosen, and sweeps, asymmetry and polish in the same stored form.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @bpdq  4 groups of 128   2 planes and an offset   output error 4.1e-02
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from qdc.format.bitplanes import MOST_PLANES, BitPlanes
from qdc.numerics.planegrid import PlaneGrid
from qdc.numerics.planestart import fit_bits, fit_with_offset
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
    block_metric,
    block_slices,
)

ITERATIONS = 10
"""Refits of ``start=alternating``, at most."""


class Bpdq(Lowered):
    """A layer as planes of {0, 1} with coefficients and an offset."""

    tag: ClassVar[str] = "bpdq"
    codec: BitPlanes


class BpdqLower(BlockLowering):
    """Sum {0, 1} planes with coefficients and an offset of each row and group of columns."""

    name: ClassVar[str] = "bpdq-lower"
    provides: ClassVar[Kinds] = (Bpdq,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "bpdq": Preset(
            "stages(calibrate-mcs,sensitivity,bpdq-lower{rounds=10 sweeps=0}),pack",
            2,
            "arXiv 2602.04163",
        ),
        "bpdq-256": Preset(
            "stages(calibrate-mcs,sensitivity,bpdq-lower{rounds=10 sweeps=0 group=256}),pack",
            2,
            "arXiv 2602.04163, groups of 256",
        ),
        "bpdq-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "bpdq-lower{rounds=5 asymmetry=1 start=alternating}),pack",
            2,
            "arXiv 2602.04163, its format",
        ),
    }

    group: int = Field(
        default=128, ge=8, le=1 << 16, multiple_of=8, description="columns of a group"
    )
    planes: int = Field(default=2, ge=1, le=MOST_PLANES, description="bits of a weight")
    start: Literal["bits", "alternating"] = Field(
        default="bits", description="highest bits of the weights, or levels fitted to them (ours)"
    )
    ridge: float = Field(
        default=1e-4,
        ge=1e-12,
        le=1,
        description="share of its mean diagonal added to a refit's system",
    )

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> BitPlanes:
        """The format of a layer, which ``qdc plan`` counts."""
        return BitPlanes(
            rows=node.rows, columns=node.columns, group=self.group, planes=self.planes, offset=True
        )

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The loop; a system of planes and offset for each refit, in fp64."""
        unknowns, weights = self.planes + 1, node.rows * node.columns
        nbytes, work = self.loop_effort(unit, node, self.group)
        refits = 1 + self.feedback * self.rounds
        exact = Work(exact=2 * (unknowns + 2) * refits * weights * self.group)
        passes = 2 * ITERATIONS * 2**self.planes if self.start == "alternating" else 2**self.planes
        held = node.rows * self.group * 8 * (2 * unknowns + 4)
        return nbytes + weights + held, work + exact + Work(elements=weights * passes)

    def lower(self, unit: Unit, node: Node) -> tuple[Bpdq, Tensors]:
        """Quantize the groups of a layer left to right."""
        slices = block_slices(node.columns, self.group)
        grids, dense = self.quantize(unit, node, slices, self.fit)
        working = BitPlanes.working(grids, dense, self.group)
        return Bpdq(codec=self.forecast_codec(unit, node)), working

    def fit(self, index: int, block: Tensor, triangle: Tensor) -> tuple[PlaneGrid, Tensor]:
        """The levels that a group starts at, and the group on them."""
        if self.start == "bits":
            return fit_bits(block, self.planes, self.ridge, block_metric(triangle).full)
        return fit_with_offset(block, self.planes, ITERATIONS, self.ridge)
