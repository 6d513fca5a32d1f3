"""The masks of an evaluation, and the logits it refuses."""

import math

import pytest
import torch
from torch import Tensor

from qdc.errors import QdcError
from qdc.evaluation.evaluate import evaluate
from qdc.evaluation.masked_loss import bound_masks, ratio_mask


def test_masks() -> None:
    """Masks repeat, hit the ratio, leave no window empty, and nest."""
    half = ratio_mask(200, 50, 0.5, seed=0)
    assert torch.equal(half, ratio_mask(200, 50, 0.5, seed=0))
    assert torch.equal(half[:20], ratio_mask(20, 50, 0.5, seed=0))
    assert not torch.equal(half, ratio_mask(200, 50, 0.5, seed=1))
    assert half.float().mean().item() == pytest.approx(0.5, abs=0.02)
    assert (ratio_mask(200, 50, 0.15, seed=0) <= half).all()
    assert ratio_mask(200, 50, 1e-9, seed=0).sum(1).tolist() == [1] * 200
    assert ratio_mask(200, 50, 1.0, seed=0).all()


def test_bound_masks() -> None:
    """Counts are 1 to L, each stratum in its own part, places as likely as each other."""
    masks = torch.stack(list(bound_masks(300, 10, 5, seed=0)))
    counts = masks.sum(2)
    for stratum in range(5):
        assert set(counts[stratum].tolist()) == {2 * stratum + 1, 2 * stratum + 2}
    assert masks.float().mean((0, 1)) == pytest.approx(torch.full((10,), 0.55), abs=0.05)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite(value: float) -> None:
    """One bad number at a masked place is found and counted."""

    def model(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 5)
        logits[0, 5, 3] = value
        return logits

    with pytest.raises(QdcError) as caught:
        evaluate(model, torch.full((2, 12), 2), 1, ratios=(1.0,))
    assert "the logits of 1 of 24 masked positions are not finite" in str(caught.value)
    assert "help  check the weights" in str(caught.value)
