"""Invert each moment and sum the importance of the weights over blocks.

Source: Quant-dLLM, arXiv 2510.03274, importance Z; the released code's form
Z_ij = W_ij^2 / U_jj^2, where U is the upper Cholesky factor of the inverse of the damped moment
(github.com/ZTA2785/Quant-dLLM). The factor is shared by the layers of a stage.

    before   %h0.q = linear %x   w f16[64,512]
                 @moment    f32[512,512]   128 samples, 32,768 tokens, 50% masked
    after        @factor    f32[512,512]   damp 0.01
                 @salience  4 blocks of 128   1.1e+03 .. 9.4e+03
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Literal

from qdc.numerics.importance import ImportanceKind, block_scores
from qdc.passkit import (
    BLOCK,
    Factor,
    Factorization,
    FactorizationFailed,
    Field,
    Forecast,
    InvalidCheckpoint,
    Kinds,
    Moment,
    Node,
    NotPositiveDefinite,
    Pass,
    Salience,
    Stage,
    Unit,
    Work,
    block_slices,
    block_widths,
    even_width,
    factor_bytes,
    factorize,
    table_key,
)

OVERFLOW = "the importance of the weights overflows fp32"


class Sensitivity(Pass):
    """Invert each moment and sum the importance of the weights over blocks."""

    name: ClassVar[str] = "sensitivity"
    requires: ClassVar[Kinds] = (Moment,)
    provides: ClassVar[Kinds] = (Factor, Salience)
    divided: ClassVar[Literal["samples", "layers", "nothing"]] = "layers"
    reads_all: ClassVar[bool] = False

    damp: float = Field(default=0.01, gt=0, le=10, description="share of the mean diagonal added")
    attempts: int = Field(
        default=9, ge=1, le=20, description="factorizations tried, damp x 10 each"
    )
    block: int = Field(
        default=BLOCK, ge=8, le=1 << 16, multiple_of=8, description="columns of a block"
    )
    widths: Literal["fixed", "even"] = Field(
        default="fixed",
        description="cut to that width, the last block narrower, or all alike and near it",
    )
    importance: ImportanceKind = Field(
        default="conditional", description="diagonal in the importance: release, or paper"
    )
    accumulate: bool = Field(
        default=False, description="damp once more for each layer of a stage (release, Dream)"
    )

    def run(self, unit: Unit) -> None:
        """Factorize once for each stage, then score each layer's own weights."""
        failed: dict[str, str] = {}
        for wave in unit.layers_by_wave():
            failed |= unit.share_wave(wave, partial(self.score, unit, dict(wave)))
        overflowing = [f"%{name}" for name, why in failed.items() if why == OVERFLOW]
        singular = {f"%{name}": why for name, why in failed.items() if why != OVERFLOW}
        if singular:
            raise NotPositiveDefinite(
                f"the second moment is not positive definite: {next(iter(singular.values()))}",
                where=tuple(singular),
                help="raise sensitivity{damp=...} or calibrate on more tokens: --samples, --length",
            )
        if overflowing:
            raise InvalidCheckpoint(
                OVERFLOW,
                where=overflowing,
                help="scale the weights of the checkpoint below 65504",
            )

    def score(
        self,
        unit: Unit,
        stages: Mapping[Stage, tuple[Node, ...]],
        of: Stage,
        layers: tuple[Node, ...],
    ) -> dict[str, str]:
        """Factorize for some layers of a stage, and score their weights.

        Returns the layers that fail, and why.
        """
        value, stage = of.value, stages[of]
        failed: dict[str, str] = {}
        moment = unit.get(unit.graph.require(layers[0].name, Moment).tensor)
        slices = block_slices(layers[0].columns, self.width(layers[0].columns))
        factor: Factorization | None = None
        for turn, node in enumerate(stage):
            if node not in layers:
                continue
            if factor is None or self.accumulate:
                try:
                    factor = factorize(moment, self.share(turn), self.attempts)
                except FactorizationFailed as error:
                    failed.update(
                        {later.name: str(error) for later in stage[turn:] if later in layers}
                    )
                    break
                suffix = f":{node.name}" if turn and self.accumulate else ""
                upper = unit.put(table_key(value, f"factor{suffix}"), factor.upper)
                dead = tuple(factor.dead.nonzero().flatten().tolist())
                note = Factor(tensor=upper, damp=factor.damp, attempts=factor.attempts, dead=dead)
            scores = block_scores(unit.weight(node), factor.upper, slices, self.importance)
            if not all(map(math.isfinite, scores)):
                failed[node.name] = OVERFLOW
                continue
            unit.annotate(node, note)
            widths = block_widths(node.columns, self.width(node.columns))
            unit.annotate(node, Salience(blocks=scores, widths=widths))
            if factor.attempts > 1 or dead:
                unit.remark(
                    "note", node, damp=factor.damp, attempts=factor.attempts, dead=len(dead)
                )
        return failed

    def forecast(self, unit: Forecast) -> None:
        """A factorization for each stage, in fp64 and in place, then a look at each weight."""
        for stage, layers in unit.layers_by_stage():
            columns = layers[0].columns
            squares, widths = columns**2, block_widths(columns, self.width(columns))
            for turn, node in enumerate(layers):
                if turn == 0 or self.accumulate:
                    unit.work(factor_bytes(columns), Work(exact=4 * columns * squares / 3))
                    factor = unit.put(stage, f"factor{turn}", columns, columns)
                weight = unit.weight(node)
                unit.work(3 * weight, Work(elements=weight))
                unit.annotate(node, Factor(tensor=factor, damp=self.damp, attempts=1))
                unit.annotate(node, Salience(blocks=(0.0,) * len(widths), widths=widths))

    def width(self, columns: int) -> int:
        """Columns of a block of a layer with so many."""
        return self.block if self.widths == "fixed" else even_width(columns, self.block)

    def share(self, turn: int) -> float:
        """Damping of the layer at this place of its stage, as a share of the mean diagonal.

        With ``accumulate`` each layer damps what the one before left, in place: 1 %, 2.01 %, 3.03 %
        (the released code's Dream groups).
        """
        return (1 + self.damp) ** (turn + 1) - 1 if self.accumulate else self.damp
