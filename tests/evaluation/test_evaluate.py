"""Masked cross-entropy against a written-out reference, and two models on the same masks."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.evaluate import compare, evaluate
from qdc.evaluation.masked_loss import bound_masks, ratio_mask
from qdc.models.decoder import Decoder
from qdc.models.llada import LLADA
from qdc.models.sizes import Sizes

MASK, VOCABULARY, LENGTH = 1, 24, 12
Model = Callable[[Tensor], Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only lose by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def llada(seed: int) -> Decoder:
    """A random network of one layer, wide awake enough to prefer some tokens."""
    torch.manual_seed(seed)
    sizes = Sizes(
        width=32, blocks=1, heads=2, hidden=48, vocabulary=VOCABULARY, mask_token=MASK, eps=1e-5
    )
    return LLADA.network(sizes)


def windows(count: int = 7, seed: int = 0) -> Tensor:
    """Random tokens, never the mask."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(2, VOCABULARY, (count, LENGTH), generator=generator)


def constant(row: Tensor) -> Model:
    """A model that predicts the same everywhere."""
    return lambda tokens: row.expand(*tokens.shape, -1)


def recorder(model: Model, seen: list[Tensor]) -> Model:
    """The same model, its inputs noted and then spoilt."""

    def recorded(tokens: Tensor) -> Tensor:
        seen.append(tokens.clone())
        logits = model(tokens)
        tokens.zero_()
        return logits

    return recorded


@torch.no_grad()
def reference_losses(model: Model, clean: Tensor, masked: Tensor) -> list[list[float]]:
    """Negative log-probability of each masked token, window by window, one by one."""
    losses = []
    for window, hidden in zip(clean, masked, strict=True):
        logits = model(torch.where(hidden, MASK, window)[None])[0].double()
        places = hidden.nonzero()[:, 0].tolist()
        losses.append([-logits[p].log_softmax(0)[window[p]].item() for p in places])
    return losses


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_evaluate_is_the_reference(batch: int) -> None:
    """Losses, tokens and bound equal sums written out one token at a time, in any batch."""
    model, clean = llada(0), windows()
    found = evaluate(model, clean, MASK, (0.3, 0.9), (4, 5), batch, bound_samples=3, documents=2)
    assert (found.documents, found.windows, found.length) == (2, 7, LENGTH)
    for ratio, result in zip((0.3, 0.9), found.ratios, strict=True):
        losses = [
            loss
            for seed in (4, 5)
            for row in reference_losses(model, clean, ratio_mask(7, LENGTH, ratio, seed))
            for loss in row
        ]
        assert result.ratio == ratio
        assert result.tokens == len(losses)
        assert result.loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    bound = 0.0
    for mask in bound_masks(7, LENGTH, 3, seed=4):
        for row in reference_losses(model, clean, mask):
            time = len(row) / LENGTH
            bound += sum(row) / time / LENGTH / 7 / 3
    assert found.bound == pytest.approx(bound, rel=1e-5)


def test_unigram() -> None:
    """A model of the windows' own frequencies reaches exactly ``unigram`` where all is masked."""
    clean = windows(20)
    frequency = clean.flatten().bincount(minlength=VOCABULARY).double() / clean.numel()
    model = constant(frequency.clamp(min=1e-30).log().float())
    found = evaluate(model, clean, MASK, ratios=(0.5, 1.0), seeds=(0,), bound_samples=2)
    expected = -sum(f * math.log(f) for f in frequency.tolist() if f)
    assert found.unigram == pytest.approx(expected)
    assert found.ratios[1].loss == pytest.approx(expected, rel=1e-6)
    assert found.ratios[1].tokens == clean.numel()
    assert found.ratios[0].loss == pytest.approx(expected, rel=0.1)


def test_uniform_model() -> None:
    """Without knowledge every loss and the bound are log V, whatever the masks."""
    found = evaluate(constant(torch.zeros(VOCABULARY)), windows(), MASK)
    assert found.bound == pytest.approx(math.log(VOCABULARY), rel=1e-6)
    assert [r.loss for r in found.ratios] == pytest.approx([math.log(VOCABULARY)] * 3, rel=1e-6)


def test_bound_is_the_mean_over_times() -> None:
    """The bound estimates the integral of the loss at t over t, here known in closed form.

    The model loses ``k / L`` nats a token where k tokens are masked (up to a constant), so that the
    bound is the mean of k / L over k = 1..L.
    """
    length, vocabulary = 16, 3

    def model(tokens: Tensor) -> Tensor:
        share = (tokens == MASK).float().mean(1)
        right = torch.log(1 / (share.exp() - 1) * (vocabulary - 1))
        logits = torch.zeros(*tokens.shape, vocabulary)
        logits[..., 2] = right[:, None]
        return logits

    clean = torch.full((40, length), 2)
    found = evaluate(model, clean, MASK, (1.0,), (0,), bound_samples=32)
    assert found.ratios[0].loss == pytest.approx(1.0, rel=1e-5)
    assert found.bound == pytest.approx((length + 1) / 2 / length, abs=0.004)


def test_model_with_itself() -> None:
    """A model differs from itself by exactly nothing."""
    model = llada(0)
    found = compare(model, model, windows(), MASK)
    assert found.candidate == found.original
    assert [(d.rise, d.standard_error) for d in found.differences] == [(0.0, 0.0)] * 3
    assert (found.bound_rise, found.bound_standard_error) == (0.0, 0.0)


def test_both_models_see_the_same() -> None:
    """Candidate and original read equal inputs, even if one of them spoils its own."""
    first: list[Tensor] = []
    second: list[Tensor] = []
    compare(
        recorder(llada(0), first), recorder(llada(1), second), windows(), MASK, (0.3,), (0, 1), 4, 2
    )
    assert len(first) == len(second) == 2 * (2 + 2)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all((tokens == MASK).any(1).all() for tokens in first)


def test_compare_agrees_with_evaluate() -> None:
    """Each side of a comparison is its own evaluation; the rise is their difference."""
    worse, better, clean = llada(0), llada(1), windows()
    found = compare(worse, better, clean, MASK)
    assert found.candidate == evaluate(worse, clean, MASK)
    assert found.original == evaluate(better, clean, MASK)
    for difference, new, old in zip(
        found.differences, found.candidate.ratios, found.original.ratios, strict=True
    ):
        assert difference.rise == pytest.approx(new.loss - old.loss)
    assert found.candidate.bound is not None
    assert found.original.bound is not None
    assert found.bound_rise == pytest.approx(found.candidate.bound - found.original.bound)
    assert type(found).model_validate_json(found.model_dump_json()) == found


def test_standard_error_is_the_jackknife() -> None:
    """Linearised errors agree with leaving out one window at a time."""
    worse, better, clean = llada(0), llada(1), windows(24)
    found = compare(worse, better, clean, MASK, (0.5,), (0, 1), bound_samples=2)
    rise, tokens = torch.zeros(24).double(), torch.zeros(24).double()
    for seed in (0, 1):
        mask = ratio_mask(24, LENGTH, 0.5, seed)
        new, old = (reference_losses(model, clean, mask) for model in (worse, better))
        rise += torch.tensor([sum(a) - sum(b) for a, b in zip(new, old, strict=True)])
        tokens += mask.sum(1)
    left_out = (rise.sum() - rise) / (tokens.sum() - tokens)
    jackknife = (23 / 24 * (left_out - left_out.mean()).square().sum()).sqrt().item()
    assert found.differences[0].standard_error == pytest.approx(jackknife, rel=0.04)
    assert found.differences[0].rise == pytest.approx((rise.sum() / tokens.sum()).item(), rel=1e-4)


def test_standard_error_of_the_bound() -> None:
    """The error of the bound is that of a mean over windows."""
    clean = torch.tensor([[2] * 8, [2] * 8, [3] * 8, [3] * 8])
    candidate = constant(torch.tensor([0.0, 0.0, math.log(2), 0.0]))
    found = compare(candidate, constant(torch.zeros(4)), clean, MASK, (0.5,), (0,))
    rises = torch.tensor([math.log(5 / 8)] * 2 + [math.log(5 / 4)] * 2)
    assert found.bound_rise == pytest.approx(rises.mean().item(), rel=1e-5)
    assert found.bound_standard_error == pytest.approx(rises.std().item() / 2, rel=1e-5)


def test_progress() -> None:
    """Progress counts every forward of every model up to the total."""
    told: list[tuple[int, int]] = []
    model = constant(torch.zeros(VOCABULARY))
    compare(
        model, model, windows(), MASK, (0.5, 0.9), (0, 1, 2), 3, 4, lambda *step: told.append(step)
    )
    assert told == [(step, 60) for step in range(1, 61)]


def test_half_precision_logits() -> None:
    """Logits of half precision are summed in full."""
    found = evaluate(constant(torch.zeros(VOCABULARY, dtype=torch.bfloat16)), windows(), MASK)
    assert found.bound == pytest.approx(math.log(VOCABULARY), rel=1e-6)


def test_wrong_models() -> None:
    """Logits of another shape, or for too few tokens, are no model of these windows."""
    with pytest.raises(QdcError, match=r"logits of shape \[2, 24\], need \[2, 12, vocabulary\]"):
        evaluate(lambda tokens: torch.zeros(len(tokens), 24), windows(2), MASK)
    with pytest.raises(QdcError, match="found token 9, and the model has logits for 9 tokens") as c:
        evaluate(constant(torch.zeros(9)), torch.full((2, 4), 9), MASK)
    assert c.value.help == "use the tokenizer of this model"


def test_senseless_requests() -> None:
    """Nothing to measure, or ratios that mask nothing, are refused before any forward."""

    def never(_: Tensor) -> Tensor:
        raise AssertionError

    with pytest.raises(
        QdcError, match=r"found mask ratio 0, 1\.5, need ratios above 0 and up to 1"
    ):
        evaluate(never, windows(), MASK, ratios=(0.0, 0.5, 1.5))
    with pytest.raises(
        QdcError, match="found 0 seeds, batch 16 and 8 bound samples, need at least"
    ):
        evaluate(never, windows(), MASK, seeds=())
    with pytest.raises(QdcError, match=r"found windows of shape \[0, 12\]"):
        evaluate(never, windows(0), MASK)
    with pytest.raises(QdcError, match="found 1 window, need at least 2 for a standard error") as c:
        compare(never, never, windows(1), MASK)
    assert "longer held-out text" in c.value.help
