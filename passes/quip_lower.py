"""Rotate a layer on both sides, and round eight columns at a time to points of the E8 lattice.

Source: QuIP# (arXiv 2402.04396) without its fine-tuning. Random signs and a Hadamard transform
on outputs and inputs spread large weights and uneven inputs over all of them; the factor is
rotated, nothing is collected again. Then LDLQ: from the last eight columns to the first, each
block takes over the errors of those before it (exact compensation between blocks of eight
columns in reversed order), and sweeps move one block at a time with all others fixed. ``scale``
is the size of a weight in units of the lattice, the release's 0.9 if not given; one fp16 number a
layer. ``rescale`` is QuIP's scale of columns (arXiv 2307.13304). Ours: ``search``, which tries
other scales by the layer's loss; ``rounds``, which refit the scale to the points; a candidate of a
sweep that would raise the loss is left.

    before   %h0.q = linear %x   w f16[64,512]
                 @factor    f32[512,512]   damp 0.01
    after        @quip   2 bits   rotated by 64 and 512   output error 4.1e-02
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch

from qdc.format.latticecode import LatticeCode
from qdc.numerics.hadamard import SEEDS
from qdc.numerics.lattice import SIZE, lattice_points, nearest_codes
from qdc.numerics.rotated import balancing_scale
from qdc.numerics.scalefit import best_scale, output_loss, stored_scale
from qdc.numerics.vector_sweeps import moment_of, vector_sweeps
from qdc.passkit import (
    CompensatedLowering,
    Field,
    Forecast,
    Kinds,
    Lowered,
    Node,
    Preset,
    Problem,
    Tensor,
    Tensors,
    Unit,
    Work,
    block_slices,
    quantize_blocks,
)
from qdc.passkit.rotation import rotated, rotation_bytes

FACTORS = (1.0, 0.9, 1.1, 1.2)
"""Of the scale: what ``search`` tries."""
SEARCH_READS = 100
"""About how often the search for the nearest point reads or writes a number."""


class Quip(Lowered):
    """A layer as points of a lattice, rotated on both sides."""

    tag: ClassVar[str] = "quip"
    codec: LatticeCode


class QuipLower(CompensatedLowering):
    """Rotate a layer on both sides, and round eight columns at a time to points of a lattice."""

    name: ClassVar[str] = "quip-lower"
    rotates: ClassVar[bool] = True
    provides: ClassVar[Kinds] = (Quip,)
    presets: ClassVar[Mapping[str, Preset]] = {
        "quip": Preset("stages(calibrate-mcs,sensitivity,quip-lower),pack", 2, "arXiv 2402.04396"),
        "quip-shared": Preset(
            "stages(calibrate-cross,sensitivity{damp=0.1},"
            "quip-lower{asymmetry=1 search=true rounds=2}),pack",
            2,
            "arXiv 2402.04396, our loop",
        ),
    }

    scale: float = Field(
        default=0.9, gt=0, le=10, description="root mean square of the weights on the lattice"
    )
    search: bool = Field(
        default=False, description="try other scales around it by the layer's loss"
    )
    sweeps: int = Field(
        default=10, ge=0, le=100, description="sweeps over the blocks of eight columns"
    )
    rounds: int = Field(
        default=0, ge=0, le=100, description="refits of the scale, each with sweeps anew"
    )
    order: Literal["reversed", "natural"] = Field(
        default="reversed", description="blocks from the last one (LDLQ), or from the first"
    )
    rescale: bool = Field(default=False, description="also scale the columns before (QuIP)")
    seed: int = Field(default=0, ge=0, lt=SEEDS, description="which rotations are drawn")

    def forecast_codec(self, unit: Forecast | Unit, node: Node) -> LatticeCode:
        """Known from the options alone."""
        return LatticeCode(rows=node.rows, columns=node.columns, rescaled=self.rescale)

    def effort(self, unit: Forecast, node: Node) -> tuple[int, Work]:
        """The factor rotated in fp64, then every pass over the blocks."""
        weights, squares = node.rows * node.columns, node.columns**2
        nbytes, work = self.compensation_effort(unit, node)
        tries = 1 + (len(FACTORS) - 1) * self.search
        sweeps = self.sweeps * (1 + self.rounds)
        work += Work(
            products=(2 * sweeps + tries) * 2 * weights * node.columns,
            exact=4 * squares * node.columns,
            elements=SEARCH_READS * (tries + sweeps) * weights,
        )
        return nbytes + rotation_bytes(node.columns), work

    def lower(self, unit: Unit, node: Node) -> tuple[Quip, Tensors]:
        """Rotate, round, sweep; what is stored are codes, the scale and the seeds."""
        problem = self.problem(unit, node)
        rescale = self._rescale(problem)
        problem, term, seeds = rotated(
            self,
            unit,
            node,
            problem,
            seed=self.seed,
            multiple=SIZE,
            reverse=self.order == "reversed",
            rescale=rescale,
        )
        scale, codes = LatticeSearch(self, problem, term).run()
        working = {
            "codes": LatticeCode.stored_codes(codes),
            "scale": scale.half().reshape(1),
            "seeds": seeds,
        }
        if rescale is not None:
            working["rescale"] = rescale.half()
        return Quip(codec=self.forecast_codec(unit, node)), working

    def _rescale(self, problem: Problem) -> Tensor | None:
        """QuIP's scale of columns as it is stored."""
        if not self.rescale:
            return None
        found = balancing_scale(problem.weight, problem.upper).half().float()
        if not bool((found.isfinite() & (found > 0)).all()):
            raise OverflowError("a scale of a column does not fit fp16")
        return found


class LatticeSearch:
    """The search for one layer's scale and codes, in rotated coordinates."""

    def __init__(self, step: QuipLower, problem: Problem, term: Tensor | None = None) -> None:
        """Set up what every candidate needs; ``term`` is that of ``quantize_blocks``."""
        self.step, self.problem, self.term = step, problem, term
        self.reverse = step.order == "reversed"
        self.slices = block_slices(problem.weight.shape[1], SIZE)
        self.moment = moment_of(problem.upper)

    def run(self) -> tuple[Tensor, Tensor]:
        """Find the scale, f32 of an fp16 number, and the codes, i64[rows, ceil(columns / 8)]."""
        weight = self.problem.weight
        size = weight.square().mean(dtype=torch.float64).sqrt().float()
        factors = FACTORS if self.step.search else FACTORS[:1]
        tried = [self.start(stored_scale(size / self.step.scale * factor)) for factor in factors]
        _, scale, dense = min(tried, key=lambda candidate: candidate[0])
        best = self.swept(scale, dense)
        for _ in range(self.step.rounds):
            scale, dense = best[1:]
            refitted = self.refit(scale, dense)
            if refitted == scale or not refitted > 0:
                break
            found = self.swept(refitted, dense / scale * refitted)
            if not found[0] < best[0]:
                break
            best = found
        _, scale, dense = best
        return scale, self.codes(dense, scale)

    def start(self, scale: Tensor) -> tuple[float, Tensor, Tensor]:
        """One pass of LDLQ: its loss, the scale, and the rounded weight."""
        dense = quantize_blocks(
            *self.problem,
            self.slices,
            self.step.compensation,
            lambda index, place: self.rounded(place, scale),
            self.term,
        )
        return self.loss(dense), scale, dense

    def swept(self, scale: Tensor, dense: Tensor) -> tuple[float, Tensor, Tensor]:
        """Sweep over the blocks: the loss, the scale, and the rounded weight."""
        found = vector_sweeps(
            self.problem.weight,
            dense,
            self.moment,
            self.slices,
            lambda index, place: self.rounded(place, scale),
            self.step.sweeps,
        )
        return self.loss(found), scale, found

    def refit(self, scale: Tensor, dense: Tensor) -> Tensor:
        """The best scale for these points, in the loss of the whole layer; as it is stored."""
        return best_scale(self.problem.weight, dense, self.moment, scale)

    def loss(self, dense: Tensor) -> float:
        """tr(E M E^T), the sum in fp64."""
        return output_loss(self.problem.weight, dense, self.moment)

    def rounded(self, place: Tensor, scale: Tensor) -> Tensor:
        """The nearest points to f32[rows, 8], in the order of the loop."""
        points = lattice_points(self.nearest(place, scale)) * scale
        return points.flip(1) if self.reverse else points

    def nearest(self, place: Tensor, scale: Tensor) -> Tensor:
        """Codes of the nearest points to f32[rows, 8], i64[rows]."""
        natural = place.flip(1) if self.reverse else place
        return nearest_codes(natural / torch.where(scale > 0, scale, 1.0))

    def codes(self, dense: Tensor, scale: Tensor) -> Tensor:
        """The codes of a weight that is made of points, blocks from the first."""
        found = [self.nearest(dense[:, part], scale) for part in self.slices]
        return torch.stack(found[::-1] if self.reverse else found, dim=1)
