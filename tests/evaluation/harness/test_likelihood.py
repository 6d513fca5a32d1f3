"""Monte-Carlo likelihoods against written-out sums, on models with known answers."""

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.harness.likelihood import default_scorer, draw, is_greedy, score
from qdc.evaluation.harness.options import LikelihoodOptions
from qdc.evaluation.harness.passages import Passage
from qdc.ir.facts import ModelFacts

MASK, VOCABULARY = 1, 11
FACTS = ModelFacts(family="llada", mask_token_id=MASK, vocabulary=VOCABULARY, max_length=32)


class Crowd:
    """A model whose prediction of a place depends on all visible tokens and on the place."""

    def __init__(self, shift: int = 0) -> None:
        generator = torch.Generator().manual_seed(5)
        self.seen = torch.randn(VOCABULARY, VOCABULARY, generator=generator)
        self.place = torch.randn(40, VOCABULARY, generator=generator)
        self.logits_shift = shift
        self.calls = 0

    def __call__(self, tokens: Tensor) -> Tensor:
        self.calls += 1
        visible = (tokens != MASK).double()[..., None]
        context = (self.seen.double()[tokens] * visible).sum(1, keepdim=True)
        return context + self.place[: tokens.shape[1]].double()


def hidden_loss(model: Crowd, tokens: tuple[int, ...], hidden: tuple[int, ...]) -> float:
    """Cross-entropy of the hidden places, summed, one after the other."""
    noisy = torch.tensor([[MASK if p in hidden else t for p, t in enumerate(tokens)]])
    logits = model(noisy)[0]
    rows = [logits[max(0, place - model.logits_shift)].log_softmax(0) for place in hidden]
    return -sum(float(row[tokens[place]]) for row, place in zip(rows, hidden, strict=True))


def exact(model: Crowd, tokens: tuple[int, ...], start: int, end: int) -> float:
    """The bound itself: the mean over counts, over all masks of a count, of the scaled loss."""
    size = end - start
    means = []
    for count in range(1, size + 1):
        losses = [
            hidden_loss(model, tokens, hidden) for hidden in combinations(range(start, end), count)
        ]
        means.append(size / count * sum(losses) / len(losses))
    return -sum(means) / size


@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("scorer", ["llada", "dream"])
def test_many_masks_reach_the_bound(scorer: str, shift: int) -> None:
    model = Crowd(shift)
    whole = Passage((3, 4, 5, 6, 7, 8), 2, 6)
    options = LikelihoodOptions.parse(scorer=scorer, mc_num=20000)
    [found] = score(model, [whole], FACTS, options)
    expected = exact(model, whole.tokens, 2, 6)
    assert found == pytest.approx(expected, rel=0.03)


def test_score_is_the_sum_over_its_masks() -> None:
    """With few masks the estimate is the weighted sum over exactly the masks that are drawn."""
    model, options = Crowd(), LikelihoodOptions(mc_num=5)
    whole = Passage((3, 4, 5, 6, 7, 8), 2, 6)
    drawn = draw(whole, options)
    expected = -sum(
        weight * hidden_loss(model, whole.tokens, tuple((2 + mask.nonzero()[:, 0]).tolist()))
        for mask, weight in zip(drawn.masks, drawn.weights.tolist(), strict=True)
    )
    assert score(model, [whole], FACTS, options) == pytest.approx([expected])


def test_one_token_is_exact_and_costs_one_sequence() -> None:
    model = Crowd()
    [found] = score(model, [Passage((3, 4, 5), 2, 3)], FACTS, LikelihoodOptions())
    assert model.calls == 1
    assert found == pytest.approx(-hidden_loss(model, (3, 4, 5), (2,)))


def test_neither_order_nor_batch_nor_neighbours_change_an_estimate() -> None:
    model = Crowd()
    passages = [
        Passage(tuple(range(2, 2 + size)), start, size)
        for size, start in ((4, 1), (7, 3), (4, 2), (9, 0), (7, 6))
    ]
    found = score(model, passages, FACTS, LikelihoodOptions(mc_num=8, batch=3))
    other = score(model, passages[::-1], FACTS, LikelihoodOptions(mc_num=8, batch=64))
    assert found == pytest.approx(other[::-1])
    for whole, value in zip(passages, found, strict=True):
        assert score(model, [whole], FACTS, LikelihoodOptions(mc_num=8)) == pytest.approx([value])
    reseeded = score(model, passages, FACTS, LikelihoodOptions(mc_num=8, seed=5))
    assert reseeded[1] != pytest.approx(found[1], rel=1e-6)


def test_guidance_is_the_published_formula() -> None:
    """``u + (w + 1) (c - u)``, where u sees no prompt."""
    model, tokens, weight = Crowd(), (3, 4, 5), 0.5
    [found] = score(model, [Passage(tokens, 2, 3)], FACTS, LikelihoodOptions(cfg=weight))
    seen = model(torch.tensor([[3, 4, MASK]]))[0, 2]
    blind = model(torch.tensor([[MASK, MASK, MASK]]))[0, 2]
    expected = (blind + (weight + 1) * (seen - blind)).log_softmax(0)[5]
    assert found == pytest.approx(float(expected), rel=1e-5)
    causal = FACTS.model_copy(update={"attention_block": 2})
    with pytest.raises(QdcError, match="scored block by block"):
        score(model, [Passage(tokens, 2, 3)], causal, LikelihoodOptions(cfg=weight))


def test_blocks_are_scored_behind_clean_ones() -> None:
    """Block-causal models: a sum over blocks, and nothing later is in sight."""
    model, tokens = Crowd(), (3, 4, 5, 6, 7)
    causal = FACTS.model_copy(update={"attention_block": 2})
    [found] = score(model, [Passage(tokens, 1, 5)], causal, LikelihoodOptions(mc_num=4096))
    parts = [(tokens[:2], 1, 2), (tokens[:4], 2, 4), (tokens[:5], 4, 5)]
    assert found == pytest.approx(sum(exact(model, *part) for part in parts), rel=0.03)


def test_published_dream_never_masks_the_first_token_or_the_end() -> None:
    options = LikelihoodOptions(scorer="dream-published", mc_num=64)
    drawn = draw(Passage((3, 4, 5, 0), 0, 3), options)
    assert drawn.masks.shape[1] == 3
    assert not drawn.masks[:, 0].any()
    assert drawn.masks[:, 1:].any(0).all()
    behind = draw(Passage((9, 3, 4, 5, 0), 1, 4), options)
    assert behind.masks.any(0).all()


def test_scorers_of_the_families() -> None:
    shifted = FACTS.model_copy(update={"logits_shift": 1})
    assert default_scorer(FACTS) == "llada"
    assert default_scorer(shifted) == "dream"
    assert default_scorer(shifted.model_copy(update={"attention_block": 4})) == "llada"
    with pytest.raises(QdcError, match="cannot be estimated like that"):
        LikelihoodOptions.parse(scorer="other")
    with pytest.raises(QdcError, match="cannot be estimated like that"):
        LikelihoodOptions.parse(mc_num=0)


def test_greedy_check_decodes_the_most_certain_first() -> None:
    """It agrees with a decoding that is written out, right and wrong."""
    for shift in (0, 1):
        model, start, length = Crowd(shift), 2, 6
        tokens = [3, 4] + [MASK] * 4
        while MASK in tokens:
            logits = model(torch.tensor([tokens]))[0]
            logits[:, MASK] = -math.inf
            open_places = [place for place in range(start, length) if tokens[place] == MASK]
            best = max(open_places, key=lambda p: float(logits[p - shift].softmax(0).max()))
            tokens[best] = int(logits[best - shift].argmax())
        right = Passage(tuple(tokens), start, length)
        assert is_greedy(model, right, FACTS, LikelihoodOptions())
        for place in range(start, length):
            wrong = list(tokens)
            wrong[place] = 2 if wrong[place] != 2 else 3
            other = Passage(tuple(wrong), start, length)
            assert not is_greedy(model, other, FACTS, LikelihoodOptions())
