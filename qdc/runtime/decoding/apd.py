"""Adaptive parallel decoding: from left to right, as many tokens a step as a verifier agrees to.

Source: APD (arXiv 2506.00413; related-systems 5). The diffusion model drafts all open places that
it sees; a target mixes its logits with those of an autoregressive verifier, which has read the
draft; the longest beginning of the draft that the target would have written too is accepted, and
the first token always. Prompts of a batch are answered one after the other.
"""

import time
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from qdc.errors import QdcError, UnsupportedModel
from qdc.models.layers import takes_windows
from qdc.numerics.noise import Places, gumbel
from qdc.pipeline.strategybase import Strategy
from qdc.runtime.decoding.canvas import Canvas, lay_out
from qdc.runtime.decoding.facts import DecodeFacts
from qdc.runtime.decoding.options import (
    Acceptance,
    DecodeOptions,
    Lookahead,
    Mixture,
    Temperature,
    TopK,
    TopP,
    Window,
)
from qdc.runtime.decoding.reader import Model, Reader
from qdc.runtime.decoding.results import Decoded, Snapshot, Watch, answers
from qdc.runtime.decoding.sampling import cut_tail, gumbel_tokens
from qdc.runtime.decoding.verifier import Verifier


class Apd(Strategy):
    """From left to right, as far as an autoregressive verifier agrees.

    A loop of its own, at the end of this file, runs it.
    """

    name: ClassVar[str] = "apd"
    source: ClassVar[str] = "APD (arXiv 2506.00413)"

    temperature: Temperature = 0.0
    top_p: TopP = None
    top_k: TopK = None
    apd_mixture: Mixture = 0.7
    apd_window: Window = 16
    apd_lookahead: Lookahead = 100
    apd_acceptance: Acceptance = "corrected"


class SlidingReader(Reader):
    """Reads a window that moves to the right: the open places, and some in front of them."""

    def __init__(self, model: Model, canvas: Canvas, facts: DecodeFacts, window: int) -> None:
        """Prepare one row; ``window`` of 0 keeps nothing."""
        super().__init__(model, canvas, facts, "prefix" if window else "none", 0.0)
        self._left = 0

    def advance(self, left: int, right: int) -> None:
        """The next call computes columns ``left`` to ``right`` and sees none behind them."""
        self._left = left
        self.begin(left, right)

    def _extent(self, *, wide: bool) -> tuple[int, int, int]:
        left = 0 if self.cache == "none" else self._left
        return left, self._last, self._last


class Draft(NamedTuple):
    """What the diffusion model would write, and what it picked that from."""

    tokens: Tensor
    """``i64[places]``."""
    logits: Tensor
    """As the model gives them, ``f64[places, shared vocabulary]``."""
    chances: Tensor
    """Logarithms of the tempered probabilities without their tail, the same shape."""
    noise: Tensor | None
    """Gumbel noise of the same shape, which the target shares."""


def draw_draft(logits: Tensor, strategy: Apd, places: Places) -> Draft:
    """Draft a token for each place.

    ``corrected`` takes the largest of ``log p + g``: p is the diffusion model at temperature T
    without its tail, g Gumbel noise. ``parity`` raises the noise to the power T besides, as the
    released code does, so that drafts are drawn at about T squared.
    """
    temperature = strategy.temperature
    if temperature == 0:
        return Draft(logits.argmax(-1), logits, logits.log_softmax(-1), None)
    cut = cut_tail(logits / temperature, strategy.top_p, strategy.top_k)
    if strategy.apd_acceptance == "parity":
        return Draft(gumbel_tokens(cut, temperature, places), logits, cut.log_softmax(-1), None)
    noise = gumbel(places.draws("token", logits.shape[-1], logits.device))
    chances = cut.log_softmax(-1)
    return Draft((chances + noise).argmax(-1), logits, chances, noise)


def target_tokens(draft: Draft, checked: Tensor, strategy: Apd) -> Tensor:
    """What the mixture with the verifier's logits, ``f64[places, ...]``, picks: ``i64[places]``.

    ``corrected`` takes the largest of ``R log p + (1 - R) log q + g``: q is the verifier at T, g
    the noise of the draft. ``parity`` takes that of the raw ``R logits + (1 - R) checked``,
    without temperature and noise.
    """
    share = strategy.apd_mixture
    if strategy.apd_acceptance == "parity":
        return _mixed(share, draft.logits, checked).argmax(-1)
    judged = (checked / (strategy.temperature or 1)).log_softmax(-1)
    mixed = _mixed(share, draft.chances, judged)
    return (mixed if draft.noise is None else mixed + draft.noise).argmax(-1)


def _mixed(share: float, ours: Tensor, theirs: Tensor) -> Tensor:
    """``share`` of the one and the rest of the other; 0 times infinity is 0 here."""
    if share in (0, 1):
        return ours if share else theirs
    return share * ours + (1 - share) * theirs


def accepted(draft: Tensor, target: Tensor) -> int:
    """Length of the longest beginning in which both agree, the first place left aside.

    That one is always accepted: with nothing drafted in front of it, the diffusion model's word on
    it is no approximation.
    """
    differs = (draft[1:] != target[1:]).nonzero()
    return 1 + int(differs[0]) if len(differs) else len(draft)


class Adaptive:
    """One run over a batch."""

    def __init__(
        self,
        model: Model,
        verifier: Verifier,
        strategy: Apd,
        options: DecodeOptions,
        facts: DecodeFacts,
    ) -> None:
        """Refuse what does not fit. Raises ``QdcError``."""
        if facts.attention_block is not None:
            raise UnsupportedModel(
                "adaptive parallel decoding drafts across blocks, and the model is block-causal",
                help="take --strategy threshold or dynamic",
            )
        if strategy.apd_window and not takes_windows(model):
            raise UnsupportedModel(
                "a window of kept keys needs a model that is computed in parts, and this one "
                "is not",
                help="take --apd-window 0",
            )
        self.model, self.verifier, self.strategy = model, verifier, strategy
        self.options, self.facts = options, facts
        self.written = self.steps = self.forwards = self.cache_bytes = 0

    def run(self, prompts: Sequence[Sequence[int]], canvas: Canvas, watch: Watch | None) -> None:
        """Fill the canvas of the batch, row by row."""
        for row, prompt in enumerate(prompts):
            if not prompt:
                raise QdcError(
                    "adaptive parallel decoding needs a prompt for the verifier to begin with",
                    help="give a prompt of one token or more",
                )
            self._row(row, list(prompt), canvas, watch)

    def _row(self, row: int, prompt: list[int], canvas: Canvas, watch: Watch | None) -> None:
        strategy, options, facts = self.strategy, self.options, self.facts
        seed = canvas.seeds[row]
        alone = lay_out([prompt], options.length, None, facts, [seed])
        reader = SlidingReader(self.model, alone, facts, strategy.apd_window)
        current, before, end = len(prompt), 0, alone.tokens.shape[1]
        shift = int(canvas.starts[row])
        for step in range(options.length):
            right = min(current + strategy.apd_lookahead, end)
            reader.advance(max(0, before - strategy.apd_window + 1) if step else 0, right)
            places = Places([seed] * (right - current), range(current, right), step)
            taken = self._pick(reader, alone, current, right, places)
            stop = next((i + 1 for i, t in enumerate(taken) if t in facts.ends), None)
            stop = stop if options.stop_early else None
            taken = taken[:stop]
            before, current = current, current + len(taken)
            self.written, self.steps = self.written + len(taken), self.steps + 1
            self.forwards += 1
            self.cache_bytes = max(self.cache_bytes, reader.cache_bytes)
            _write(alone, 0, before, taken)
            _write(canvas, row, shift + before, taken)
            if stop is not None:
                rest = [facts.ends[0]] * (end - current)
                _write(canvas, row, shift + current, rest)
                current = end
            if watch is not None:
                tokens, masked = canvas.shown()
                watch(Snapshot(tokens, masked, self.steps, None, self.forwards))
            if current == end:
                return

    def _pick(
        self, reader: Reader, alone: Canvas, current: int, right: int, places: Places
    ) -> list[int]:
        """Draft the places from ``current`` to ``right``, and give what is accepted."""
        columns = torch.arange(current, right)
        logits = reader.read(torch.zeros_like(columns), columns)[:, : self.verifier.vocabulary]
        if self.facts.mask < logits.shape[1]:
            logits[:, self.facts.mask] = -torch.inf
        draft = draw_draft(logits, self.strategy, places)
        found: list[int] = draft.tokens.tolist()
        if len(found) == 1:
            return found
        read = alone.tokens[0, :current].tolist() + found
        checked = self.verifier.score(read, current).to(logits.device)
        return found[: accepted(draft.tokens, target_tokens(draft, checked, self.strategy))]


def _write(canvas: Canvas, row: int, first: int, tokens: list[int]) -> None:
    """Decide the columns of a row from ``first`` on."""
    last = first + len(tokens)
    canvas.tokens[row, first:last] = torch.tensor(tokens, dtype=torch.int64)
    canvas.masked[row, first:last] = False


def decode_adaptively(
    model: Model,
    prompts: Sequence[Sequence[int]],
    strategy: Apd,
    options: DecodeOptions,
    facts: DecodeFacts,
    verifier: Verifier,
    watch: Watch | None,
    seeds: Sequence[int],
) -> Decoded:
    """Write an answer to each prompt; arguments as for ``decode``.

    ``forwards`` counts the diffusion model alone; the verifier is called as often, but for the last
    token.
    """
    run = Adaptive(model, verifier, strategy, options, facts)
    canvas = lay_out(prompts, options.length, None, facts, seeds)
    started = time.perf_counter()
    run.run(prompts, canvas, watch)
    seconds = time.perf_counter() - started
    tokens, _ = canvas.shown()
    found = answers(tokens, options.length, facts.ends)
    counts = run.written, run.steps, run.forwards
    return Decoded(tokens, found, *counts, seconds, run.cache_bytes, run.cache_bytes)
