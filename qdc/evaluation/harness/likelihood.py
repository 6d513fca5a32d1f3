"""The log-likelihood of an answer under a masked-diffusion model: a bound, by Monte Carlo."""

from collections.abc import Sequence
from hashlib import sha256
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional

from qdc.errors import QdcError, UnsupportedModel
from qdc.evaluation.harness.draws import Draws, even_times, exact_counts
from qdc.evaluation.harness.options import LikelihoodOptions, Scorer
from qdc.evaluation.harness.passages import Passage, pieces
from qdc.ir.facts import ModelFacts
from qdc.models.predictions import Logits, logits_shift, predicted, require_finite
from qdc.units import Progress


def default_scorer(facts: ModelFacts) -> Scorer:
    """The scorer that the family's own evaluation uses.

    Dream's for fully bidirectional models with shifted logits; LLaDA's for all others, block by
    block where attention is block-causal.
    """
    return "dream" if facts.logits_shift and facts.attention_block is None else "llada"


def require_masks(facts: ModelFacts, tasks: Sequence[str] = ()) -> None:
    """Raise ``UnsupportedModel`` for a model of noise; ``tasks`` are what asks for likelihoods."""
    if facts.renoises:
        raise UnsupportedModel(
            "a likelihood is asked for, whose bound is that of masks, and the model takes random "
            "tokens out of a canvas",
            where=tasks,
            help="take tasks in which the model writes, as gsm8k",
        )


@torch.no_grad()
def score(
    model: Logits,
    passages: Sequence[Passage],
    facts: ModelFacts,
    options: LikelihoodOptions,
    progress: Progress | None = None,
) -> list[float]:
    """Estimate the log-likelihood of every passage's answer, nats.

    Masks depend on the tokens of the passage and on the seed, not on where the passage stands.
    Passages of one length share forwards. Raises QdcError for logits that are not finite, and
    UnsupportedModel for a model that knows no masks.
    """
    require_masks(facts)
    if options.cfg and facts.attention_block is not None:
        raise QdcError(
            "a block-causal model is scored block by block, which has no unguided prompt",
            help="leave out --cfg",
        )
    parts = [
        (number, part)
        for number, whole in enumerate(passages)
        for part in pieces(whole, facts.attention_block)
    ]
    parts.sort(key=lambda entry: len(entry[1].tokens))
    found = torch.zeros(len(passages), dtype=torch.float64)
    done = 0
    for _, group in groupby(parts, lambda entry: len(entry[1].tokens)):
        rows = _Rows(model, facts.mask, options, found)
        for number, part in group:
            rows.add(number, part, draw(part, options))
            done += 1
            if progress is not None:
                progress(done, len(parts))
        rows.flush()
    return found.tolist()


def draw(part: Passage, options: LikelihoodOptions) -> Draws:
    """The masks of one passage, over its scored tokens."""
    text = f"{part.start}:{part.end}:{','.join(map(str, part.tokens))}"
    key = f"likelihood {options.seed} {sha256(text.encode()).hexdigest()}"
    if options.scorer == "llada":
        return exact_counts(part.size, options.mc_num, key)
    drawn = even_times(part.size, options.mc_num, key)
    if options.scorer == "dream-published" and part.start == 0:
        masks = drawn.masks.clone()
        masks[:, 0] = False
        return Draws(masks[masks.any(1)], drawn.weights[masks.any(1)])
    return drawn


@torch.no_grad()
def is_greedy(model: Logits, whole: Passage, facts: ModelFacts, options: LikelihoodOptions) -> bool:
    """Whether greedy decoding, one token a step and the most certain first, gives the answer.

    Stops at the first token that is another one. Source: the check of LLaDA's evaluation.
    """
    for part in pieces(whole, facts.attention_block):
        tokens = torch.tensor([part.tokens])
        clean = tokens.clone()
        hidden = torch.zeros_like(tokens, dtype=torch.bool)
        hidden[0, part.start : part.end] = True
        while bool(hidden.any()):
            starts = torch.tensor([part.start])
            noisy = tokens.masked_fill(hidden, facts.mask)
            logits = guided(model, noisy, starts, facts.mask, options.cfg, hidden).double()
            if facts.mask < logits.shape[1]:
                logits[:, facts.mask] = -torch.inf
            confidence, predicted = logits.softmax(1).max(1)
            best = int(confidence.argmax())
            place = int(hidden[0].nonzero()[best, 0])
            if int(predicted[best]) != int(clean[0, place]):
                return False
            hidden[0, place] = False
    return True


def guided(
    model: Logits, noisy: Tensor, starts: Tensor, mask_id: int, cfg: float, hidden: Tensor
) -> Tensor:
    """Logits ``f32[hidden, vocabulary]`` that predict the hidden places ``bool[rows, length]``.

    ``starts``, ``i64[rows]``, are where prompts end.
    """
    shift = logits_shift(model)

    def read(tokens: Tensor) -> Tensor:
        found = predicted(model, tokens, hidden, shift).float().cpu()
        require_finite(found)
        return found

    if not cfg:
        return read(noisy)
    prompt = torch.arange(noisy.shape[1]) < starts[:, None]
    blind = read(noisy.masked_fill(prompt, mask_id))
    return blind + (cfg + 1) * (read(noisy.clone()) - blind)


class _Rows:
    """Masked sequences of one length, run as soon as they fill a batch."""

    def __init__(
        self, model: Logits, mask_id: int, options: LikelihoodOptions, found: Tensor
    ) -> None:
        self.model, self.mask_id, self.options, self.found = model, mask_id, options, found
        self.waiting: list[tuple[Tensor, Tensor, int, int, float]] = []

    def add(self, number: int, part: Passage, draws: Draws) -> None:
        tokens = torch.tensor(part.tokens)
        for mask, weight in zip(draws.masks, draws.weights.tolist(), strict=True):
            hidden = torch.zeros(len(tokens), dtype=torch.bool)
            hidden[part.start : part.end] = mask
            self.waiting.append((tokens, hidden, part.start, number, weight))
            if len(self.waiting) == self.options.batch:
                self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        clean = torch.stack([row[0] for row in self.waiting])
        hidden = torch.stack([row[1] for row in self.waiting])
        starts = torch.tensor([row[2] for row in self.waiting])
        noisy = clean.masked_fill(hidden, self.mask_id)
        logits = guided(self.model, noisy, starts, self.mask_id, self.options.cfg, hidden)
        losses = functional.cross_entropy(logits, clean[hidden], reduction="none").double()
        places = hidden.nonzero()[:, 0]
        owners = torch.tensor([row[3] for row in self.waiting])
        weights = torch.tensor([row[4] for row in self.waiting], dtype=torch.float64)
        self.found.index_add_(0, owners[places], -weights[places] * losses)
        self.waiting.clear()
