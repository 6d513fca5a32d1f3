"""The decoding loop: block by block, step by step, until no place is masked."""

import time
from collections.abc import Sequence
from itertools import count

import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.numerics.noise import Places
from qdc.pipeline.strategybase import Stepwise, Strategy
from qdc.runtime.decoding.agenda import Agenda, goes_alone
from qdc.runtime.decoding.apd import Apd, decode_adaptively
from qdc.runtime.decoding.canvas import lay_out
from qdc.runtime.decoding.denoising import Renoise
from qdc.runtime.decoding.denoising_loop import denoise
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import DecodeOptions
from qdc.runtime.decoding.reader import Model, Predicts, Reader
from qdc.runtime.decoding.results import Decoded, Snapshot, Watch, answers
from qdc.runtime.decoding.schedule import shared_steps
from qdc.runtime.decoding.strategies import BUILT_IN, Strategies, check_canvas, make_strategy
from qdc.runtime.decoding.verifier import Verifier

LATE = -1e300
"""Confidence of ends that are to come last; what is not open has minus infinity."""


@torch.no_grad()
def decode(
    model: Model,
    prompts: Sequence[Sequence[int]],
    options: DecodeOptions,
    facts: DecodeFacts,
    watch: Watch | None = None,
    verifier: Verifier | None = None,
    seeds: Sequence[int] | None = None,
    strategies: Strategies = BUILT_IN,
) -> Decoded:
    """Write an answer to each prompt.

    A batch gives what each prompt gives alone, up to the rounding of the model.

    Args:
        model: a module of ``qdc.load``, or any ``(tokens, mask) -> logits``, see ``reader.Model``.
        prompts: token ids; they may differ in length.
        options: strategy, steps, noise and the rest; ``facts.usual`` where they do not say.
        facts: of the model and its tokenizer.
        watch: called after each step; what it raises ends the decoding.
        verifier: of ``apd``, and of nothing else.
        seeds: one a prompt, in place of ``options.seed``.
        strategies: where the strategy's name is looked up; ``Registry.strategies`` has those of
            plugins too.

    Raises:
        QdcError: a prompt, an option or the model does not fit; says what to do.
    """
    options = options.settled(facts.usual)
    each = row_seeds(prompts, options, seeds)
    strategy = make_strategy(options, strategies)
    check_verifier(strategy, present=verifier is not None)
    check_canvas(strategy, facts)
    if isinstance(strategy, Renoise):
        return denoise(model, prompts, strategy, options, facts, watch, each)
    if isinstance(strategy, Apd):
        assert verifier is not None
        return decode_adaptively(model, prompts, strategy, options, facts, verifier, watch, each)
    canvas = lay_out(prompts, options.length, options.block, facts, each)
    reader = Reader(model, canvas, facts, options.cache, options.cfg, options.cache_bits)
    loop = Loop(reader, strategy, options, facts, stops=options.stop_early)
    started = time.perf_counter()
    loop.run(watch)
    seconds = time.perf_counter() - started
    tokens, _ = canvas.shown()
    found = answers(tokens, options.length, facts.ends)
    kept = reader.cache_bytes, reader.cache_plain_bytes
    return Decoded(tokens, found, loop.written, loop.steps, reader.forwards, seconds, *kept)


def check_verifier(strategy: Strategy, *, present: bool) -> None:
    """Refuse ``apd`` without a verifier, and a verifier without it. Raises ``QdcError``."""
    if isinstance(strategy, Apd) and not present:
        raise QdcError(
            "adaptive parallel decoding needs an autoregressive verifier",
            help="give --verifier, a small model with the same tokenizer, or take "
            "--strategy threshold",
        )
    if not isinstance(strategy, Apd) and present:
        raise QdcError(
            f"the strategy {strategy.name} asks no verifier",
            help="leave --verifier out, or take --strategy apd",
        )


class Loop:
    """One run over a canvas; counts what it does."""

    def __init__(
        self,
        reader: Predicts,
        strategy: Stepwise,
        options: DecodeOptions,
        facts: DecodeFacts,
        *,
        stops: bool,
    ) -> None:
        """Plan the steps. Raises ``QdcError`` for ends that the tokenizer does not have."""
        if (options.forbid_eos or options.late_eos) and facts.eos is None:
            raise QdcError(
                "the tokenizer has no end of sequence to forbid or to delay",
                help="leave out forbid_eos and late_eos",
            )
        self.reader, self.canvas, self.strategy = reader, reader.canvas, strategy
        self.options, self.facts, self.stops = options, facts, stops
        self.written = self.steps = 0
        spans = self.canvas.spans
        counts = [self.canvas.masked[:, first:last].sum(1) for first, last in spans]
        self.counts = torch.stack(counts, 1) if counts else torch.zeros(0, 0, dtype=torch.int64)
        shares = [shared_steps(row, options.steps) for row in self.counts.tolist()]
        self.shares = torch.tensor(shares, dtype=torch.int64).view(self.counts.shape)
        self.planned = self._planned()

    def run(self, watch: Watch | None) -> None:
        """Fill the canvas."""
        for block, (first, last) in enumerate(self.canvas.spans):
            rows = self.reader.rows
            if not len(rows):
                return
            agenda = self._agenda(block, rows)
            self.reader.begin(first, last)
            for step in count():
                open_places = self.canvas.masked[rows, first:last]
                if not bool(open_places.any()):
                    break
                amount = agenda.amount(step)
                if amount is not None and not bool(amount[open_places.any(1)].any()):
                    continue  # nothing is decided, so nothing need be computed
                self._step(first, last, step, agenda)
                if watch is not None:
                    watch(self.snapshot())
            if self.stops:
                self._leave_out_what_is_behind(last)

    def snapshot(self) -> Snapshot:
        """The state now."""
        tokens, masked = self.canvas.shown()
        return Snapshot(tokens, masked, self.steps, self.planned, self.reader.forwards)

    def _step(self, first: int, last: int, step: int, agenda: Agenda) -> None:
        canvas, rows, amount = self.canvas, self.reader.rows, agenda.amount(step)
        open_places = canvas.masked[rows, first:last]
        row, column = open_places.nonzero(as_tuple=True)
        at = rows[row], column + first
        tokens = torch.zeros(len(row), dtype=torch.int64)
        sure = torch.zeros(len(row), dtype=torch.float64)
        for some, logits in self.reader.parts(row, column + first):
            tokens[some], sure[some] = self._propose(logits, (at[0][some], at[1][some]), step)
        confidence = torch.full(open_places.shape, -torch.inf, dtype=torch.float64)
        confidence[row, column] = sure
        chosen = self.strategy.choose(confidence, open_places, amount)
        chosen = agenda.restrict(chosen, step)[row, column]
        if amount is None and not bool(chosen.any()):
            raise QdcError(
                f"the strategy {self.strategy.name} decides nothing, and {len(row)} places are "
                "open",
                help="choose one open place of each row or more, or give a plan",
            )
        taken = at[0][chosen], at[1][chosen]
        canvas.tokens[taken] = tokens[chosen]
        canvas.masked[taken] = False
        self.written += int(chosen.sum())
        self.steps += 1

    def _propose(
        self, logits: Tensor, at: tuple[Tensor, Tensor], step: int
    ) -> tuple[Tensor, Tensor]:
        """Tokens and confidence of open places, from their logits ``f64[places, vocabulary]``."""
        if self.facts.mask < logits.shape[1]:
            logits[:, self.facts.mask] = -torch.inf
        if self.options.forbid_eos:
            logits[:, self.facts.eos] = -torch.inf
        seeds = [self.canvas.seeds[place] for place in at[0].tolist()]
        places = Places(seeds, self.canvas.positions[at].tolist(), step)
        proposal = self.strategy.propose(logits, places)
        tokens, sure = proposal.tokens.cpu(), proposal.confidence.cpu()
        if self.options.late_eos:
            ends = torch.tensor(self.facts.ends, dtype=torch.int64, device=logits.device)
            rest = logits.index_fill(1, ends[ends < logits.shape[1]], -torch.inf)
            sure = self.strategy.sureness_without(rest, proposal, places).cpu()
            sure = sure.masked_fill(self._is_end(tokens), LATE)
        return tokens, sure

    def _agenda(self, block: int, rows: Tensor) -> Agenda:
        first = self.canvas.spans[block][0]
        alone = goes_alone(self.canvas, self.facts, self.reader.cache, first)
        counts, steps = self.counts[rows, block], self.shares[rows, block]
        return Agenda(self.strategy, counts, steps, alone[rows])

    def _leave_out_what_is_behind(self, last: int) -> None:
        """Close rows that hold an end before the column ``last``."""
        canvas, rows = self.canvas, self.reader.rows
        answer = canvas.visible & (canvas.positions >= self._prompt_lengths()[:, None])
        found = (self._is_end(canvas.tokens) & answer)[rows, :last].any(1)
        for row in rows[found].tolist():
            canvas.tokens[row, canvas.masked[row]] = self.facts.ends[0]
            canvas.masked[row] = False
        self.reader.keep_rows(~found)

    def _prompt_lengths(self) -> Tensor:
        return self.canvas.ends - self.canvas.starts - self.options.length

    def _is_end(self, tokens: Tensor) -> Tensor:
        return torch.isin(tokens, torch.tensor(self.facts.ends, dtype=torch.int64))

    def _planned(self) -> int | None:
        """Steps in all, where the strategy fixes them."""
        total = 0
        for block in range(len(self.canvas.spans)):
            taken = self._agenda(block, self.reader.rows).taken
            if taken is None:
                return None
            total += taken
        return total


def row_seeds(
    prompts: Sequence[Sequence[int]], options: DecodeOptions, seeds: Sequence[int] | None
) -> list[int]:
    """The seed of each row. Raises ``QdcError`` unless there is one a prompt."""
    if seeds is None:
        return [options.seed] * len(prompts)
    if len(seeds) != len(prompts):
        raise QdcError(
            f"found {len(seeds)} seeds for {len(prompts)} prompts", help="give one a prompt"
        )
    return list(seeds)
