"""Agreement of two models on masked tokens and on what they decode, against written-out sums."""

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.agreement import decode_agreement
from qdc.evaluation.evaluate import compare
from qdc.evaluation.masked_loss import masked_sums, ratio_mask

MASK, VOCABULARY, LENGTH = 1, 9, 12


class Table:
    """Logits that depend on the position and on how many tokens are masked."""

    def __init__(self, seed: int, shift: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.rows = 2 * torch.randn(LENGTH, VOCABULARY, generator=generator)
        self.logits_shift = shift

    def __call__(self, tokens: Tensor) -> Tensor:
        share = (tokens == MASK).float().mean(1)[:, None, None]
        return self.rows[: tokens.shape[1]] * (1 + share)


def windows(count: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator)


@pytest.mark.parametrize("shift", [0, 1])
def test_agreement_is_the_reference(shift: int) -> None:
    """Equal top tokens and KL(original || candidate), one masked token at a time."""
    candidate, original, clean = Table(0, shift), Table(1, shift), windows()
    found = compare(candidate, original, clean, MASK, (0.3, 0.8), (2, 3), 4, 1)
    for ratio, agreement in zip((0.3, 0.8), found.agreements, strict=True):
        same, divergences = [], []
        for seed in (2, 3):
            masked = ratio_mask(6, LENGTH, ratio, seed)
            for window, hidden in zip(clean, masked, strict=True):
                noisy = torch.where(hidden, MASK, window)[None]
                mine, theirs = candidate(noisy)[0].double(), original(noisy)[0].double()
                for place in hidden.nonzero()[:, 0].tolist():
                    p = theirs[max(0, place - shift)].softmax(0)
                    q = mine[max(0, place - shift)].softmax(0)
                    same.append(float(p.argmax() == q.argmax()))
                    divergences.append(float((p * (p / q).log()).sum()))
        assert agreement.ratio == ratio
        assert agreement.top1 == pytest.approx(sum(same) / len(same))
        assert agreement.divergence == pytest.approx(sum(divergences) / len(divergences), rel=1e-5)
        assert agreement.divergence_interval is not None
        assert agreement.divergence_interval[0] < agreement.divergence
        assert agreement.divergence < agreement.divergence_interval[1]


def test_a_model_agrees_with_itself() -> None:
    model, clean = Table(0), windows()
    found = compare(model, model, clean, MASK, (0.5,), (0,), bound_samples=1, infills=3)
    assert [(a.top1, a.divergence) for a in found.agreements] == [(1.0, 0.0)]
    assert found.decoding is not None
    assert (found.decoding.tokens_equal, found.decoding.gaps_equal) == (1.0, 3)
    assert found.decoding.candidate_right == found.decoding.original_right


def test_models_are_compared_on_request_alone() -> None:
    masked = ratio_mask(6, LENGTH, 0.5, 0)
    alone = masked_sums((Table(0), Table(1)), windows(), masked, MASK, 4, lambda: None)
    assert alone.agreed == alone.divergences == ()


def test_documents_are_resampled() -> None:
    """Two documents of three windows each: their difference decides the error of the rise."""
    clean, owners = windows(), torch.tensor([0, 0, 0, 1, 1, 1])
    found = compare(Table(0), Table(1), clean, MASK, (1.0,), (0,), bound_samples=1, owners=owners)
    lost = masked_sums(
        (Table(0), Table(1)), clean, torch.ones(6, LENGTH).bool(), MASK, 6, lambda: None
    )
    rise = ((lost.losses[0] - lost.losses[1]) / LENGTH).view(2, 3).mean(1)
    assert found.candidate.resampled == "documents"
    assert found.differences[0].rise == pytest.approx(float(rise.mean()))
    assert found.differences[0].standard_error == pytest.approx(float(rise.std() / 2**0.5))
    assert found.differences[0].interval == pytest.approx((float(rise.min()), float(rise.max())))
    single = compare(
        Table(0), Table(1), clean, MASK, (1.0,), (0,), bound_samples=1, owners=owners * 0
    )
    assert single.candidate.resampled == "windows"
    with pytest.raises(QdcError, match="the documents of"):
        compare(Table(0), Table(1), clean, MASK, owners=owners[:2])


def test_decode_agreement_counts_tokens_and_gaps() -> None:
    """Two models that always write one token each agree nowhere, or everywhere."""

    def writes(token: int) -> Table:
        model = Table(0)
        model.rows = torch.zeros(LENGTH, VOCABULARY)
        model.rows[:, token] = 9.0
        return model

    clean = torch.full((5, LENGTH), 4)
    differ = decode_agreement(writes(4), writes(5), clean, MASK, 5)
    assert (differ.gaps, differ.gap) == (5, 3)
    assert (differ.tokens_equal, differ.gaps_equal) == (0.0, 0)
    assert (differ.candidate_right, differ.original_right) == (1.0, 0.0)
    agree = decode_agreement(writes(5), writes(5), clean, MASK, 2)
    assert (agree.gaps, agree.tokens_equal, agree.gaps_equal) == (2, 1.0, 2)
    with pytest.raises(QdcError, match="need 1 or more in 2"):
        decode_agreement(writes(4), writes(5), clean[:, :1], MASK, 2)


@pytest.mark.parametrize("block", [None, 5])
def test_gaps_filled_together_are_those_filled_alone(block: int | None) -> None:
    """Each row's decisions are its own; with blocks, rows are taken together by theirs."""
    sizes: list[int] = []

    class Counted(Table):
        def __call__(self, tokens: Tensor) -> Tensor:
            sizes.append(len(tokens))
            return super().__call__(tokens)

    models, clean = (Counted(0), Counted(1)), windows(7)
    alone = decode_agreement(*models, clean, MASK, 7, None, block)
    assert set(sizes) == {1}
    sizes.clear()
    told: list[tuple[int, int]] = []
    together = decode_agreement(
        *models, clean, MASK, 7, None, block, lambda *done: told.append(done), batch=4
    )
    assert together == alone
    assert 1 < max(sizes) <= 4
    assert told[-1] == (7, 7)
