"""The loss at random tokens of a canvas, against a written-out reference."""

import pytest
import torch
from torch import Tensor

from qdc.errors import UnsupportedModel
from qdc.evaluation.evaluate import compare, evaluate
from qdc.evaluation.harness.likelihood import score
from qdc.evaluation.harness.options import LikelihoodOptions
from qdc.evaluation.next_token import require_causal
from qdc.evaluation.noise import Noise
from qdc.ir.facts import ModelFacts
from tests.evaluation.test_evaluate import VOCABULARY, constant, recorder, windows

NOISE = Noise(canvas=5, vocabulary=VOCABULARY)
LENGTH = 12


def test_the_loss_is_that_of_the_text_where_tokens_are_random() -> None:
    clean, seen = windows(), list[Tensor]()
    row = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(2))
    found = evaluate(recorder(constant(row), seen), clean, NOISE, (0.5,), seeds=(0, 1), batch=3)
    places = torch.stack([NOISE.places(7, LENGTH, 0.5, seed) for seed in (0, 1)])
    assert not bool(places[..., :-5].any())
    assert bool(places.any(-1).all())
    tokens = torch.stack([NOISE.tokens(7, LENGTH, seed) for seed in (0, 1)])
    expected = torch.where(places, tokens, clean)
    assert torch.equal(torch.cat(seen).view(2, 7, LENGTH), expected)
    losses = -row.log_softmax(0)[clean.expand(2, -1, -1)[places]]
    (ratio,) = found.ratios
    assert ratio.tokens == int(places.sum())
    assert ratio.loss == pytest.approx(losses.mean().item(), abs=1e-6)
    assert (found.bound, found.bound_interval, found.canvas) == (None, None, 5)


def test_a_smaller_ratio_lies_within_a_larger_one_and_all_tokens_are_drawn() -> None:
    some, most = (NOISE.places(40, LENGTH, ratio, 0) for ratio in (0.3, 0.8))
    assert bool((some <= most).all())
    assert bool(NOISE.places(4, LENGTH, 1.0, 0)[:, -5:].all())
    assert set(NOISE.tokens(40, LENGTH, 0).flatten().tolist()) == set(range(VOCABULARY))
    assert bool(NOISE.places(4, 3, 1.0, 0).all())


def test_two_models_are_compared_on_the_same_noise_without_a_bound() -> None:
    rows = torch.randn(2, VOCABULARY, generator=torch.Generator().manual_seed(3))
    first, second = constant(rows[0]), constant(rows[1])
    found = compare(first, second, windows(), NOISE, (0.3, 0.9), seeds=(0,), batch=4)
    alone = evaluate(first, windows(), NOISE, (0.3, 0.9), seeds=(0,), batch=7)
    assert [row.loss for row in found.candidate.ratios] == [row.loss for row in alone.ratios]
    for number, difference in enumerate(found.differences):
        rise = found.candidate.ratios[number].loss - found.original.ratios[number].loss
        assert difference.rise == pytest.approx(rise)
    assert (found.bound_rise, found.bound_standard_error, found.bound_interval) == (None,) * 3
    assert len(found.agreements) == len(found.differences) == 2


def test_a_canvas_has_no_next_token_loss() -> None:
    facts = ModelFacts(family="toy", mask_token_id=None, vocabulary=9, max_length=9, canvas=4)
    with pytest.raises(UnsupportedModel, match="takes random tokens out of a canvas"):
        require_causal(facts)


def test_a_canvas_has_no_likelihood() -> None:
    facts = ModelFacts(family="toy", mask_token_id=None, vocabulary=9, max_length=9, canvas=4)
    with pytest.raises(UnsupportedModel, match="whose bound is that of masks"):
        score(constant(torch.zeros(9)), [], facts, LikelihoodOptions())
