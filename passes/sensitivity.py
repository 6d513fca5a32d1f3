"""Invert each moment and sum the importance of the weights over blocks.

Source: Quant-dLLM, arXiv 2510.03274, importance Z; the released code's form
Z_ij = W_ij^2 / U_jj^2, where U is the upper Cholesky factor of the inverse of the damped moment
(github.com/ZTA2785/Quant-dLLM). The factor is shared by the layers of a stage.

    before   %h0.q = linear %x   w f16[64,512]
                 @moment    f32[512,512]   128 samples, 32,768 tokens, 38% masked
    after        @factor    f32[512,512]   damp 0.01
                 @salience  4 blocks of 128   1.1e+03 .. 9.4e+03
"""

import math
from typing import ClassVar

from pydantic import Field

from qdc.errors import InvalidCheckpoint, NotPositiveDefinite
from qdc.ir.annotations import Factor, Moment, Salience
from qdc.numerics.blocks import block_slices, block_widths
from qdc.numerics.factor import FactorizationFailed, factorize
from qdc.numerics.importance import block_scores
from qdc.passbase import Kinds, Pass
from qdc.pipeline.unit import Unit


class Sensitivity(Pass):
    """Invert each moment and sum the importance of the weights over blocks."""

    name: ClassVar[str] = "sensitivity"
    requires: ClassVar[Kinds] = (Moment,)
    provides: ClassVar[Kinds] = (Factor, Salience)

    damp: float = Field(default=0.01, gt=0, le=10, description="share of the mean diagonal added")
    attempts: int = Field(
        default=9, ge=1, le=20, description="factorizations tried, damp x 10 each"
    )

    def run(self, unit: Unit) -> None:
        """Factorize once for each stage, then score each layer's own weights."""
        failed: dict[str, str] = {}
        overflowing: list[str] = []
        for stage, layers in unit.layers_by_stage():
            moment = unit.graph.require(layers[0].name, Moment)
            try:
                factor = factorize(unit.get(moment.tensor), self.damp, self.attempts)
            except FactorizationFailed as error:
                failed.update({f"%{node.name}": str(error) for node in layers})
                continue
            upper = unit.put(f"{stage.value}:factor", factor.upper)
            dead = tuple(factor.dead.nonzero().flatten().tolist())
            note = Factor(tensor=upper, damp=factor.damp, attempts=factor.attempts, dead=dead)
            slices = block_slices(layers[0].columns)
            for node in layers:
                scores = block_scores(unit.weight(node), factor.upper, slices)
                if not all(map(math.isfinite, scores)):
                    overflowing.append(f"%{node.name}")
                    continue
                unit.annotate(node, note)
                unit.annotate(node, Salience(blocks=scores, widths=block_widths(layers[0].columns)))
                if factor.attempts > 1 or dead:
                    unit.remark(
                        "note", node, damp=factor.damp, attempts=factor.attempts, dead=len(dead)
                    )
        if failed:
            raise NotPositiveDefinite(
                f"the second moment is not positive definite: {next(iter(failed.values()))}",
                where=tuple(failed),
                help="raise sensitivity{damp=...} or calibrate on more tokens: --samples, --length",
            )
        if overflowing:
            raise InvalidCheckpoint(
                "the importance of the weights overflows fp32",
                where=overflowing,
                help="scale the weights of the checkpoint below 65504",
            )
