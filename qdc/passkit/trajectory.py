"""Denoising trajectories of the original model: every state that its sampler goes through.

The sampler is the loop of ``qdc generate`` with a strategy of ``qdc.runtime.decoding``, on a model
that is streamed. What is decided stays, so a trajectory is kept as its last tokens and the step
that decided each: a state costs no memory of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.ir.facts import ModelFacts
from qdc.models.families import FAMILIES
from qdc.passkit.predictor import Predictor
from qdc.passkit.streamed_reader import StreamedReader
from qdc.pipeline.strategybase import Stepwise
from qdc.runtime.decoding.canvas import Canvas, block_size, lay_out_gaps
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.loop import Loop
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.results import Snapshot
from qdc.runtime.decoding.schedule import shared_steps
from qdc.runtime.decoding.strategies import BUILT_IN, check_canvas, make_strategy, own_strategy

OPEN = torch.iinfo(torch.int32).max
"""In place of a step, where nothing was decided."""
OWN = "own"
"""In place of a strategy: that of the published code of such a model."""
Enough = Callable[[Tensor, Tensor], Tensor]
"""``(decided i64[rows], steps i64[rows]) -> bool[rows]``: whether a row need go no further."""


@dataclass(frozen=True)
class Sampler:
    """How the original model writes: a strategy, its steps and its blocks."""

    strategy: str = OWN
    """``name`` or ``name{option=value}``; ``own`` is that of the family's published code."""
    steps: int = 8
    """Of a whole text, for strategies whose steps are planned."""
    block: int | None = None
    """Places finished together; those of the model's attention, or all, if None."""
    seed: int = 0

    def text(self, model: ModelFacts) -> str:
        """The strategy that is meant."""
        if self.strategy != OWN:
            return self.strategy
        usual = next((f.decoding for f in FAMILIES if f.name == model.family), {})
        return own_strategy(DecodeFacts.of(model, usual=usual))

    def options(self, model: ModelFacts) -> DecodeOptions:
        """The options of the loop; ``steps`` where the strategy reads it."""
        given = DecodeOptions(strategy=self.text(model))
        if "steps" not in type(make_strategy(given)).reads:
            return given
        return given.model_copy(update={"steps": self.steps})

    def make(self, model: ModelFacts) -> Stepwise:
        """The strategy itself.

        Raises:
            QdcError: there is none of that name, it refuses an option, or it asks a verifier.
        """
        strategy = make_strategy(self.options(model), BUILT_IN)
        check_canvas(strategy, DecodeFacts.of(model))
        if isinstance(strategy, Stepwise):
            return strategy
        raise QdcError(
            f"the strategy {strategy.name} asks a verifier, and calibration has none",
            help="take another strategy, as low-confidence",
        )

    def sweeps(self, length: int, given: int, model: ModelFacts) -> int:
        """Steps of a text of which the first ``given`` places are not filled.

        At most, where confidence says how many places a step decides.
        """
        size = self.block_of(model) or length
        counts = [
            min(first + size, length) - max(first, given)
            for first in range(0, length, size)
            if min(first + size, length) > given
        ]
        return sum(shared_steps(counts, self.options(model).steps))

    def block_of(self, model: ModelFacts) -> int | None:
        """Places finished together. Raises ``QdcError`` if they do not divide the attention's."""
        return block_size(self.block, model.attention_block)


@dataclass(frozen=True)
class Trajectories:
    """One trajectory for each sample."""

    clean: Tensor
    """``i64[rows, T]``: the text, whose visible places the sampler has seen."""
    final: Tensor
    """``i64[rows, T]``: the last tokens; the mask token where nothing was decided."""
    decided: Tensor
    """``i32[rows, T]``: the step that decided a place, counted from 0 in its own row; ``OPEN``
    where none did, -1 where the sampler writes nothing."""
    sweeps: int
    """Sweeps through the model."""

    @property
    def steps(self) -> Tensor:
        """Steps of each row that decided something, ``i64[rows]``."""
        return self.decided.masked_fill(self.decided == OPEN, -1).amax(1).long() + 1

    def counts(self) -> Tensor:
        """Places that are decided in front of each step, ``i64[rows, most steps + 1]``.

        Behind a row's last step they stay what they are.
        """
        most = int(self.steps.max()) if len(self.decided) else 0
        found = torch.zeros(len(self.decided), most + 2, dtype=torch.int64)
        # Column s + 1 collects step s; whatever is not decided falls into the last, which is left.
        column = torch.where(self.decided < 0, OPEN, self.decided).clamp(max=most).long() + 1
        found.scatter_add_(1, column, torch.ones_like(column))
        return found[:, :-1].cumsum(1)

    def states(self, rows: Tensor, steps: Tensor, mask: int) -> tuple[Tensor, Tensor]:
        """The states in front of these steps.

        Args:
            rows: ``i64[n]``.
            steps: ``i64[n]``, each at most the steps of its row.
            mask: the mask token.

        Returns:
            Tokens ``i64[n, T]``, and what of them is masked, ``bool[n, T]``.
        """
        masked = self.decided[rows] >= steps[:, None]
        return self.final[rows].masked_fill(masked, mask), masked


def trajectories(
    predictor: Predictor,
    clean: Tensor,
    maskable: Tensor,
    sampler: Sampler,
    enough: Enough,
    batch: int,
    segments: Tensor | None = None,
) -> Trajectories:
    """Let the original model fill ``maskable`` places of each row.

    Args:
        predictor: the model.
        clean: ``i64[rows, T]``; in the places to fill only their number counts.
        maskable: ``bool[rows, T]``: what the sampler writes.
        sampler: how it writes.
        enough: asked after each step; rows that need go no further are not computed again.
        batch: rows computed at once.
        segments: ``i64[rows, T]``: which positions see each other; None if all of a row do.

    Raises:
        QdcError: the sampler does not fit the model.
        UnsupportedModel: the model does not end in a linear.
    """
    facts = DecodeFacts.of(predictor.graph.model)
    options, strategy = sampler.options(predictor.graph.model), sampler.make(predictor.graph.model)
    seeds = [(sampler.seed << 20) + row for row in range(len(clean))]
    block = sampler.block_of(predictor.graph.model)
    canvas = lay_out_gaps(clean, maskable, block, facts.mask, seeds)
    reader = StreamedReader(predictor, canvas, batch, segments)
    record = _Record(canvas, enough)
    with torch.no_grad():
        Loop(reader, strategy, options, facts, stops=False).run(record)
    return Trajectories(clean, canvas.tokens, record.decided, reader.forwards)


class _Record:
    """Notes which step of the loop decides what, and closes rows that have gone far enough."""

    def __init__(self, canvas: Canvas, enough: Enough) -> None:
        self.canvas, self.enough = canvas, enough
        self.places = canvas.masked.sum(1)
        self.before = canvas.masked.clone()
        self.steps = torch.zeros(len(canvas.masked), dtype=torch.int64)
        self.decided = torch.where(canvas.masked, OPEN, -1).to(torch.int32)

    def __call__(self, state: Snapshot) -> None:
        fresh = self.before & ~self.canvas.masked
        step = self.steps.to(torch.int32)[:, None].expand_as(fresh)
        self.decided = torch.where(fresh, step, self.decided)
        self.steps += fresh.any(1)
        decided = self.places - self.canvas.masked.sum(1)
        # A row without an open place asks for no prediction any more. One that was closed stays so.
        self.canvas.masked[self.enough(decided, self.steps) & (self.steps > 0)] = False
        self.before = self.canvas.masked.clone()
